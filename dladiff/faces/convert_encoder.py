"""Convert an encoder's pickle to safetensors: `python -m dladiff.faces.convert_encoder IN.pth OUT.safetensors`.

Reading a pickle can run code. `weights_only=True` allows only tensors, but that reader has had security faults
(docs/decisions/0014-supply-chain.md). So no run reads a pickle. Convert the file once, on a machine without secrets.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

MAX_DEPTH = 4
"""Deepest nesting of names to tensors that is followed; PhotoMaker's file has two levels."""


def convert(pickle: Path, target: Path) -> int:
    """Write all tensors of a pickle, named by their path in it (`id_encoder.vision_model...`); return their number.

    Raises ValueError: it holds none.
    """
    loaded: Any = torch.load(pickle, map_location="cpu", weights_only=True)
    tensors = {name.removeprefix("module."): tensor.clone().contiguous() for name, tensor in _tensors(loaded, "", 0)}
    if not tensors:
        raise ValueError(f"{pickle} holds no tensors by name")
    save_file(tensors, target)
    return len(tensors)


def _tensors(values: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(values, Tensor):
        yield prefix.removesuffix("."), values
    elif isinstance(values, Mapping) and depth < MAX_DEPTH:
        for name, value in values.items():
            yield from _tensors(value, f"{prefix}{name}.", depth + 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pickle", type=Path, help="published file, such as parsing_bisenet.pth")
    parser.add_argument("target", type=Path, help="safetensors file to write")
    arguments = parser.parse_args()
    print(f"{arguments.target}: {convert(arguments.pickle, arguments.target)} tensors")
