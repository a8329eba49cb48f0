"""Compared methods: their records, of which each file of `dladiff/baselines/` with a method holds one.

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
    """Bound of the perturbation, L-inf, [0, 1] units. Another one compares methods at equal strength."""
    min_psnr: float = 0.0
    """PSNR, dB, that each square keeps beside `eta`; 0 leaves it out. With a wide `eta`, methods meet at one PSNR."""
    step_size: float = 0.64 * PX
    """PGD step (5e-3 on [-1, 1] tensors)."""
    epochs: int = 1
    """Rounds of training and perturbation."""
    steps: int = 0
    """PGD steps an epoch."""
    training: int = 0
    """Training steps of the surrogate: before the one attack (FSMG), or each time an epoch trains."""
    lr: float = 0.0
    """AdamW learning rate of that training."""
    batch: int = 4
    """Squares on the device at once; a matter of memory alone."""
    weight: float = 0.0
    """DisDiff: of the attention energy. Mist: of the semantic loss ("rate")."""
    search: int = 0
    """DisDiff: rounds of the search for timesteps."""
    prompt_steps: int = 0
    """Anti-Diffusion: steps that tune the prompt's embedding, once before each epoch."""
    prompt_lr: float = 0.0
    """Anti-Diffusion: their learning rate."""
    rank: int = 4
    """ACE: rank of its LoRA."""
    attention_resolution: int = 16
    """DisDiff, Anti-Diffusion: side, in latent cells, of the maps that they read."""
    prompt: str = "a photo of sks person"
    """Prompt of every training and attack step."""
    prior_weight: float = 1.0
    """Weight of the class images' loss, where the surrogate holds class images."""


@dataclass(frozen=True, kw_only=True)
class Method(Record):
    """A compared method; `function` takes a `dladiff.baselines.task.Task` and returns the perturbation."""

    paper: str = ""
    """Authors and year; empty for a control."""
    year: int = 0
    """Of publication; tables list methods by it."""
    maximises: str
    """What gradient ascent maximises."""
    schedule: BaselineConfig
    """Of its paper, for a full-size base model."""
    tiny: dict[str, Any] = field(default_factory=dict)
    """What differs on the tiny model: as many PGD steps as ours takes there (8 epochs of 6), learning rates as far up
    as ours."""


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
"""Name of what makes layer 1: this package's method, or a compared one."""


def schedule_for(method: str, model: str) -> BaselineConfig:
    """Return the default schedule of a method on a base model (`embedded` is the tiny one)."""
    return SCHEDULES[method].replaced(**(METHODS[method].tiny if model == "embedded" else {}))


if __name__ == "__main__":
    print(" ".join(name for name, method in METHODS.items() if method.paper))
