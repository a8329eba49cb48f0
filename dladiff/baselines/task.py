"""The input of every compared method: one identity's squares, the surrogate, the random streams."""

from dataclasses import dataclass

from torch import Generator

from dladiff.core.pixels import Images
from dladiff.diffusion.surrogate import Surrogate
from dladiff.settings.schedules import BaselineConfig


@dataclass(frozen=True)
class Task:
    """One identity. A method returns the perturbation `n 3 r r` of its squares.

    |delta| <= schedule.eta, and x + delta stays in [0, 1].
    """

    surrogate: Surrogate
    clean: Images
    """Squares of clean photos, `m 3 r r`."""
    x: Images
    """The squares to protect, `n 3 r r`."""
    schedule: BaselineConfig
    generators: list[Generator]
    """One random stream for each square."""
    shared_generator: Generator
    """Random stream for what all squares share."""
