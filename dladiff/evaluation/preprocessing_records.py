"""Preprocessings: the records of `preprocessing.py`, `purifiers.py`, `vae_purifiers.py` and `trained_remover.py`.

This module does not import torch, so the driver can check names without it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dladiff.errors import ModelError
from dladiff.settings.records import Record, read_records


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Record):
    """A preprocessing of whole photos. `function` takes one photo, h x w x 3 uint8, and `settings`.

    A purifier's `function` takes the folder or file of its weights ("" for none), the device and `settings`. It returns
    a function of a photo.
    """

    about: str
    """What it does."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of `function`."""
    purifier: bool = False
    """Whether it runs a network."""
    needs: str = ""
    """Weights that the user must provide; empty: none."""
    one_file: bool = False
    """Whether these weights are one file, and no folder in the diffusers layout."""

    @property
    def place(self) -> str:
        """What `needs` are stored as: "file" or "folder"."""
        return "file" if self.one_file else "folder"

    def prepare(self, weights: str = "", device: str = "cpu") -> Callable[[Any], Any]:
        """Return the function of a photo. Raises ModelError: weights are missing or damaged."""
        needed = Path(weights) if self.one_file else Path(weights) / "model_index.json"
        if self.needs and not (weights and needed.is_file()):
            more = "" if self.one_file else ", with model_index.json in it"
            raise ModelError(f"{self.name} needs {self.needs}: name its {self.place}{more}")
        function = partial(self.load(), **self.settings)
        return function(weights, device) if self.purifier else function


PREPROCESSINGS: dict[str, Preprocessing] = {
    record.name: record for record in read_records("dladiff.evaluation", Preprocessing, {})
}
"""Name to record, preprocessings without a network first."""
