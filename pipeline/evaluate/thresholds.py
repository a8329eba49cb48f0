"""Thresholds of verification: which one each encoder of an evaluator has, where it comes from, and what is missing."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from dladiff.errors import ConfigError
from dladiff.evaluation.verification import Calibration, read_calibrations, shipped_calibrations
from pipeline.evaluate.config import EvaluateConfig
from pipeline.storage.keys import shown

MAX_BYTES = 2**20
"""Largest calibration file that is read; one encoder takes under 1 kB."""


def calibrations_of(config: EvaluateConfig) -> dict[str, Calibration]:
    """Return the calibrations by digest of the encoder's file: those of `--calibration`, else those in the package.

    Raises ConfigError: a file cannot be read.
    """
    found = {one.sha256: one for one in shipped_calibrations()}
    for name in config.calibrations:
        found |= {one.sha256: one for one in _read(name)}
    return found


def _read(name: str) -> tuple[Calibration, ...]:
    try:
        with Path(name).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"--calibration {shown(name)}: {error.strerror}; `dladiff calibrate` writes one"]) from error
    if len(data) > MAX_BYTES:
        raise ConfigError([f"--calibration {shown(name)}: more than {MAX_BYTES:,} bytes"])
    return read_calibrations(data, f"--calibration {shown(name)}")


def thresholds_of(config: EvaluateConfig, encoders: Iterable[Mapping[str, str]]) -> tuple[dict[str, float], list[str]]:
    """Return each encoder's threshold by its name, and a line about each encoder's, or about why it has none.

    `encoders` have a name and the digest of their file. A threshold of `--threshold` comes before a calibration.
    """
    calibrations, thresholds, lines = calibrations_of(config), dict[str, float](), []
    for encoder in encoders:
        name, calibration = encoder["name"], calibrations.get(encoder["sha256"])
        if name in config.thresholds:
            thresholds[name] = config.thresholds[name]
            lines.append(f"verification by {name}: cosine {thresholds[name]:.3f} or more, given by --threshold")
        elif calibration is not None:
            thresholds[name] = calibration.threshold
            lines.append(f"verification by {name}: {about(calibration)}")
        else:
            lines.append(
                f"not measured: verification by {name} (no threshold: `dladiff calibrate`, --calibration FILE)"
            )
    return thresholds, lines


def about(found: Calibration) -> str:
    """Return one line: the threshold with its interval, what it rests on, and how often it accepts the same person."""
    rate = "-" if found.true_accept_rate is None else f"{100 * found.true_accept_rate:.0f} %"
    if found.true_accept_low is not None and found.true_accept_high is not None:
        rate += f" ({100 * found.true_accept_low:.0f} to {100 * found.true_accept_high:.0f})"
    return (
        f"cosine {found.threshold:.3f} ({found.threshold_low:.3f} to {found.threshold_high:.3f}) or more, reached by "
        f"{found.false_accepts:,} of {found.impostor_comparisons:,} comparisons of different people ({found.people} "
        f"people; false accept rate {found.false_accept_rate:g}) and by {rate} of {found.genuine_comparisons:,} "
        f"comparisons of a photo with others of the same person; photos: {found.source or 'not named'}"
    )
