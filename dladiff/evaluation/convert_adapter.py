"""Convert a published adapter (a pickle) to safetensors: `python -m dladiff.evaluation.convert_adapter IN.bin OUT`.

Reading a pickle can run code. `weights_only=True` allows only tensors, but that reader has had security faults
(docs/decisions/0014-supply-chain.md). So no run reads a pickle. Convert the file once, on a machine without secrets.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

PARTS = ("image_proj", "ip_adapter")
"""Parts of IP-Adapter's layout; in safetensors a tensor's name begins with its part."""


def convert(pickle: Path, target: Path) -> int:
    """Write the tensors of an adapter's pickle as safetensors; return their number. Raises ValueError: wrong layout."""
    loaded: Any = torch.load(pickle, map_location="cpu", weights_only=True)
    tensors: dict[str, Tensor] = {
        f"{part}.{name}": tensor.contiguous() for part in PARTS for name, tensor in dict(loaded.get(part, {})).items()
    }
    if not tensors:
        raise ValueError(f"{pickle} holds neither {' nor '.join(PARTS)}")
    save_file(tensors, target)
    return len(tensors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pickle", type=Path, help="ip-adapter-faceid_sd15.bin, ip-adapter.bin")
    parser.add_argument("target", type=Path, help="safetensors file to write")
    arguments = parser.parse_args()
    print(f"{arguments.target}: {convert(arguments.pickle, arguments.target)} tensors")
