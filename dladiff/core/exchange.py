"""Input and output of the method. Imports no torch: the actor passes photos on before networks are loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dladiff.core.codec import PNG, Codec


@dataclass(frozen=True, kw_only=True)
class PhotoIn:
    """One photo to protect: a key unique in its identity, and h x w x 3 RGB bytes."""

    key: str
    pixels: NDArray[np.uint8]
    file_bytes: int = 0
    """Size of a JPEG original, which limits the size of a JPEG output; 0: no limit."""
    transparent: bool = False
    """The photo has an alpha channel, which JPEG cannot hold."""
    faces: Sequence[Mapping[str, Any]] = ()
    """Faces that the user gives beside the detected ones: `box` (x0, y0, x1, y1), `landmarks` (5 x 2) or None; px."""


@dataclass(frozen=True, kw_only=True)
class PhotoOut:
    """One protected photo and the measurements of its stored pixels (linf in [0, 1] units, psnr in dB).

    `psnr_face` is infinite, `ssimulacra2_face` NaN without a face; the latter is the lowest of the faces.
    """

    key: str
    pixels: NDArray[np.uint8]
    """The pixels to encode with `codec`; the measurements are of what a reader decodes."""
    status: str
    reason: str
    faces: list[dict[str, Any]]
    linf: float
    linf_face: float
    psnr: float
    psnr_face: float
    ssim: float
    ssimulacra2: float
    ssimulacra2_face: float
    similarity: list[dict[str, Any]]
    retained: float
    codec: Codec = PNG
    geometry: dict[str, Any] | None = None
    """Where the face was displaced before the pixels were changed: `largest`, per cent of the distance between the
    eyes, and `box`, the rectangle (x0, y0, x1, y1) around the displaced pixels; None: nowhere."""


@dataclass(frozen=True)
class IdentityOut:
    """One protected identity, with timings, device, models and package versions."""

    photos: list[PhotoOut]
    seconds: dict[str, float]
    peak_memory_bytes: int
    device: str
    models: list[dict[str, str]]
    versions: dict[str, str]
    note: str = ""
    """Deviations from the configuration, for the manifest."""
    steps: dict[str, dict[str, int]] = field(default_factory=dict)
    """Step counts of each stage, as in `protect.Protected`."""
    trace: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Losses and similarities of the steps; empty unless the setting `trace` is on."""
    largest_faces: list[NDArray[np.float32]] = field(default_factory=list)
    """Unit embedding of the largest face of each photo with one; empty for a single photo."""
