"""What goes into the method and what comes out. Imports no torch: who passes photos on needs no networks."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class PhotoIn:
    """One photo to protect: a key unique in its identity, and h x w x 3 RGB bytes."""

    key: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class PhotoOut:
    """One protected photo with what was measured on its bytes (units: [0, 1] for linf, dB for psnr)."""

    key: str
    pixels: NDArray[np.uint8]
    status: str
    reason: str
    faces: list[dict[str, Any]]
    linf: float
    linf_face: float
    psnr: float
    psnr_face: float
    ssim: float
    similarity: list[dict[str, Any]]
    retained: float


@dataclass(frozen=True)
class IdentityOut:
    """One protected identity and how it was made."""

    photos: list[PhotoOut]
    seconds: dict[str, float]
    peak_memory_bytes: int
    device: str
    models: list[dict[str, str]]
    versions: dict[str, str]
    note: str = ""
    """What was done otherwise than configured, for the manifest."""
    steps: dict[str, dict[str, int]] = field(default_factory=dict)
    """Steps of each stage by kind of work, as in `protect.Protected`."""
    trace: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Losses and similarities of the steps, where the settings ask for them (`trace`)."""
