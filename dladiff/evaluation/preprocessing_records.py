"""Preprocessings: their records, which stand in `preprocessing.py` and `purifiers.py` of this folder.

Nothing here imports torch: a wrong name is reported before anything starts.
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
    """What happens to whole photos first; `function` takes one photo, h x w x 3 uint8, and `settings`.

    A purifier's `function` takes the folder of its weights ("" for none), the device and `settings`, and returns such a
    function.
    """

    about: str
    settings: dict[str, Any] = field(default_factory=dict)
    purifier: bool = False
    needs: str = ""
    """Weights that the user must name."""

    def prepare(self, weights: str = "", device: str = "cpu") -> Callable[[Any], Any]:
        """Return the function of a photo. Raises ModelError: weights are missing or damaged."""
        if self.needs and not (weights and (Path(weights) / "model_index.json").is_file()):
            raise ModelError(f"{self.name} needs {self.needs}: name its folder, with model_index.json in it")
        function = partial(self.load(), **self.settings)
        return function(weights, device) if self.purifier else function


PREPROCESSINGS: dict[str, Preprocessing] = {
    record.name: record for record in read_records("dladiff.evaluation", Preprocessing, {})
}
"""Name to record; those that need no network first."""
