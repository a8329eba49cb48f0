"""Make safetensors of a published adapter, a pickle: `python -m dladiff.evaluation.convert_adapter IN.bin OUT`.

A pickle can run code when it is read. `weights_only=True` allows tensors alone, but faults of that reader are known
(docs/decisions/0014-supply-chain.md). So no run reads one: convert the file once, where nothing is at stake.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

PARTS = ("image_proj", "ip_adapter")
"""Of IP-Adapter's layout; in safetensors a tensor's name begins with its part."""


def convert(pickle: Path, target: Path) -> int:
    """Write the tensors of an adapter's pickle as safetensors; return how many. Raises ValueError: another layout."""
    loaded: Any = torch.load(pickle, map_location="cpu", weights_only=True)
    found: dict[str, Tensor] = {
        f"{part}.{name}": tensor.contiguous() for part in PARTS for name, tensor in dict(loaded.get(part, {})).items()
    }
    if not found:
        raise ValueError(f"{pickle} holds neither {' nor '.join(PARTS)}")
    save_file(found, target)
    return len(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pickle", type=Path, help="ip-adapter-faceid_sd15.bin, ip-adapter.bin")
    parser.add_argument("target", type=Path, help="safetensors file to write")
    given = parser.parse_args()
    print(f"{given.target}: {convert(given.pickle, given.target)} tensors")
