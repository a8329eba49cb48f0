"""Loads a base model by the kind of its network."""

from pathlib import Path

import torch

from dladiff.diffusion.architecture import read_architecture
from dladiff.diffusion.base_model import BaseModel
from dladiff.diffusion.catalogue import locate
from dladiff.diffusion.surrogate import Surrogate
from dladiff.diffusion.transformers.surrogate import FlowSurrogate


def load_base_model(model: str | Path, device: torch.device) -> BaseModel:
    """Load a model, named as in `locate`: a U-Net's or a transformer's.

    Raises ModelError: missing, damaged, incomplete, or of an unsupported architecture.
    """
    root = locate(str(model))
    return FlowSurrogate(root, device) if read_architecture(root).family else Surrogate(root, device)
