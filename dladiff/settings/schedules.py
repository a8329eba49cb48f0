"""Compared methods: their records, one in each method's file in `dladiff/baselines/`.

A record has its paper's bound, step and schedule, and a scaled schedule for the tiny model. Nothing here imports torch:
the driver reads it. `python -m dladiff.settings.schedules` prints the names of the published methods.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dladiff.settings.records import Record, read_records
from dladiff.settings.validate import Settings

PX = 1 / 255
"""One grey level, [0, 1] units."""


class BaselineConfig(Settings):
    """Schedule of one compared method; fields that the method has no use for are ignored."""

    eta: float
    """Bound of the perturbation, L-inf, [0, 1] units."""
    min_psnr: float = 0.0
    """Lowest PSNR of a square, dB, as a bound beside `eta`; 0: no such bound."""
    step_size: float = 0.64 * PX
    """PGD step (5e-3 on [-1, 1] tensors)."""
    epochs: int = 1
    """Alternations of training and perturbation."""
    steps: int = 0
    """PGD steps an epoch."""
    training: int = 0
    """Training steps of the surrogate: before the attack (FSMG), or in each epoch."""
    lr: float = 0.0
    """AdamW learning rate of that training."""
    batch: int = 4
    """Squares on the device at once; affects memory only."""
    weight: float = 0.0
    """DisDiff: weight of the attention energy. Mist: weight of the semantic loss ("rate"). SDS: sign of the ascent."""
    search: int = 0
    """DisDiff: rounds of the search for timesteps."""
    pool: int = 1
    """MetaCloak: states of the surrogate in its pool."""
    interval: int = 0
    """MetaCloak: training steps between two of them; also those of a state while it is attacked."""
    prompt_steps: int = 0
    """Anti-Diffusion: tuning steps of the prompt's embedding before each epoch."""
    prompt_lr: float = 0.0
    """Anti-Diffusion: learning rate of that tuning."""
    rank: int = 4
    """ACE: rank of its LoRA."""
    attention_resolution: int = 16
    """DisDiff, Anti-Diffusion: side of the attention maps, latent cells."""
    prompt: str = "a photo of sks person"
    """Prompt of every training and attack step."""
    prior_weight: float = 1.0
    """Weight of the prior loss, if the surrogate has class images."""


@dataclass(frozen=True, kw_only=True)
class Method(Record):
    """A compared method; `function` takes a `dladiff.baselines.task.Task` and returns the perturbation."""

    paper: str = ""
    """Authors and year; empty for a control."""
    year: int = 0
    """Year of publication; tables are sorted by it."""
    maximises: str
    """What gradient ascent maximises."""
    schedule: BaselineConfig
    """Schedule of its paper, for a full-size base model."""
    tiny: dict[str, Any] = field(default_factory=dict)
    """Changes for the tiny model: as many PGD steps as our method takes (8 epochs of 6), and learning rates raised by
    the same factor."""


def _order(method: Method) -> tuple[bool, int, str]:
    return not method.paper, method.year, method.name


METHODS: dict[str, Method] = {
    method.name: method
    for method in sorted(
        read_records("dladiff.baselines", Method, {"BaselineConfig": BaselineConfig, "PX": PX}), key=_order
    )
}
"""Name to record: published methods by year, then the controls."""

SCHEDULES = {name: method.schedule for name, method in METHODS.items()}

if TYPE_CHECKING:
    Protection = str
else:
    Protection = Literal[("dladiff", *METHODS)]
"""Name of the method of layer 1: this package's, or a compared one."""


def schedule_for(method: str, model: str) -> BaselineConfig:
    """Return the default schedule of a method on a base model (`embedded` is the tiny one)."""
    return SCHEDULES[method].replaced(**(METHODS[method].tiny if model == "embedded" else {}))


if __name__ == "__main__":
    print(" ".join(name for name, method in METHODS.items() if method.paper))
