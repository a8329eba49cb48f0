"""Purification by a network that was trained on pairs of clean and protected photos (`dladiff.training.remover`)."""

from collections.abc import Callable
from pathlib import Path

import torch

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import to_float, to_uint8
from dladiff.evaluation.preprocessing_records import Preprocessing
from dladiff.training.remover_network import load_remover, removed

REMOVER = Preprocessing(
    name="remover",
    function="remover",
    purifier=True,
    about="a U-Net trained on pairs of clean and protected photos of other people, at the photo's own size",
    needs="the weights that `python -m dladiff.training.remover` wrote",
    one_file=True,
)


def remover(weights: str, device: str) -> Callable[[Pixels], Pixels]:
    """Return a trained remover as a function of a photo. Raises ModelError."""
    network = load_remover(Path(weights)).to(device)
    place = torch.device(device)
    return lambda photo: to_uint8(removed(network, to_float(photo).to(place)).cpu())
