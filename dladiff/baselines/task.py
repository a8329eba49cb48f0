"""What every compared method is given: one identity's squares, and what it learns from."""

from dataclasses import dataclass

from torch import Generator

from dladiff.core.pixels import Images
from dladiff.diffusion.surrogate import Surrogate
from dladiff.settings.schedules import BaselineConfig


@dataclass(frozen=True)
class Task:
    """One identity; a method returns the perturbation `n 3 r r` of its squares and leaves alone what it does not use.

    |delta| <= schedule.eta, and x + delta stays in [0, 1].
    """

    surrogate: Surrogate
    clean: Images
    """Squares of clean photos, `m 3 r r`."""
    x: Images
    """The squares to protect, `n 3 r r`."""
    schedule: BaselineConfig
    generators: list[Generator]
    """One stream a square."""
    shared_generator: Generator
    """Random stream for what all squares share."""
