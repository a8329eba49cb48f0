"""Identity adapters and what each reads of a photo: one record each, in the files of `dladiff/faces/adapters/`.

Nothing here imports torch: the driver reads it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import AfterValidator

from dladiff.settings.merge import nearest
from dladiff.settings.records import Record, read_records
from dladiff.settings.validate import Items

PREFIX = "adapter:"
"""Start of an encoder's name that is an adapter (`adapter:pulid`) or one of its readings (`adapter:pulid.eva`)."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One network of an adapter, and how it gets and reads a photo. Two adapters may have an equal reading."""

    weights: str
    """Weights in `dladiff.faces.weights.WEIGHTS`."""
    kind: Literal["pack", "clip", "siglip", "photomaker", "eva02", "ir_se", "ir"]
    """Layout of the network: `pack` is the recognition model of an InsightFace pack."""
    cut: Literal["arcface", "ffhq", "photo crop", "photo square"] = "arcface"
    """What the network gets. `arcface`: the face, aligned to InsightFace's template; `ffhq`: to facexlib's. `photo
    crop`: the middle of the whole photo, whose shorter side is resized. `photo square`: the whole photo, resized to a
    square."""
    side: int = 0
    """Side of this cut, pixels; 0: the network's own input size."""
    resized: int = 0
    """Side to which the cut is resized for the network, pixels; 0: it is not."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter of this resize: antialiased bicubic, or bilinear without antialiasing."""
    colour: Literal["rgb", "bgr", "grey"] = "rgb"
    """Order of the channels. `grey`: luma (BT.601) in all three."""
    output: Literal["embedding", "projected", "pooled", "last", "penultimate", "blocks", "features"] = "embedding"
    """`embedding`: the recognition model's vector. `projected`, `pooled`: the tower's vector with and without
    projection. `last`, `penultimate`: the tokens after the last layer, and after the one before it. `blocks`: the
    projected vector, and the tokens before some blocks. `features`: feature maps as tokens."""
    class_token: bool = True
    """Whether the adapter uses a tower's first token too."""
    mask: str = ""
    """Weights of the parsing network whose background classes become white; empty: no mask."""
    normalised: bool = True
    """Whether the adapter gets the vector at unit length. The loss is a cosine either way."""


@dataclass(frozen=True, kw_only=True)
class Adapter(Record):
    """An identity adapter: its readings by a short name, and the sources that say so."""

    function: str = ""
    """Adapters have no function."""
    about: str
    """Base model and authors."""
    readings: dict[str, Reading]
    source: str
    """Repository, commit and files in which the readings were looked up."""
    differs: str = ""
    """How a reading here differs from the adapter's own; empty: in nothing that is known."""


ADAPTERS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in sorted(
        read_records("dladiff.faces.adapters", Adapter, {"Reading": Reading}), key=lambda adapter: adapter.name
    )
}
"""Adapters by name."""
PACKS = {
    reading.weights: replace(reading, normalised=True)
    for adapter in ADAPTERS.values()
    for reading in adapter.readings.values()
    if reading.kind == "pack"
}
"""InsightFace packs by name, as adapters read them."""
ALL = f"known: {', '.join(ADAPTERS)}"


def reading_of(name: str) -> Reading:
    """Return the reading that an encoder's name `adapter:ADAPTER.READING` means; `expanded` returns such names."""
    adapter, _, short = name.removeprefix(PREFIX).partition(".")
    return ADAPTERS[adapter].readings[short]


def expanded(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of encoders with each adapter (`adapter:NAME`) replaced by its readings.

    A reading that is equal to one before it, or to a pack that is named, is left out; the loss is the same with and
    without unit length. Raises ValueError: an unknown adapter or reading.
    """
    out: dict[object, str] = {}
    for name in names:
        if not name.startswith(PREFIX):
            pack = PACKS.get(name)
            known = pack if pack is not None and pack not in out else (name, len(out))
            out[known] = name  # repeated names are reported when the encoders are loaded
            continue
        for one in _readings(name):
            out.setdefault(replace(reading_of(one), normalised=True), one)
    return tuple(out.values())


def adapter_fault(name: str) -> str | None:
    """Return what is wrong with an adapter's name, None if it is known."""
    return None if name in ADAPTERS else f"no adapter named {name!r}{nearest(name, list(ADAPTERS))}; {ALL}"


def _readings(name: str) -> list[str]:
    adapter, dot, short = name.removeprefix(PREFIX).partition(".")
    readings = _known(adapter).readings
    if dot and short not in readings:
        raise ValueError(
            f"{adapter} has no reading {short!r}{nearest(short, list(readings))}; it has: {', '.join(readings)}"
        )
    return [name] if dot else [f"{PREFIX}{adapter}.{one}" for one in readings]


def _known(name: str) -> Adapter:
    if fault := adapter_fault(name):
        raise ValueError(fault)
    return ADAPTERS[name]


Encoders = Annotated[Items[str], AfterValidator(expanded)]
"""Names of encoders in settings, adapters replaced by their readings."""
