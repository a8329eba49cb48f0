"""Bounds, steps and schedules of the compared methods: their papers' own, and scaled ones for the tiny model.

Nothing here imports torch: the driver reads it.
"""

from typing import Any

from dladiff.settings.validate import Settings

PX = 1 / 255
"""One grey level, [0, 1] units."""


class BaselineConfig(Settings):
    """Schedule of one compared method; a field that it does not know it leaves alone."""

    eta: float
    """Bound of the perturbation, L-inf, [0, 1] units. Another one compares methods at equal strength."""
    least_psnr: float = 0.0
    """PSNR, dB, that each square keeps beside `eta`; 0 leaves it out. With a wide `eta`, methods meet at one PSNR."""
    step: float = 0.64 * PX
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


SCHEDULES: dict[str, BaselineConfig] = {
    # METHOD "The compared methods, as their papers define them"
    "fsmg": BaselineConfig(eta=6.4 * PX, steps=100, training=1000, lr=5e-7),
    "aspl": BaselineConfig(eta=6.4 * PX, epochs=50, steps=6, training=3, lr=5e-7),
    "disdiff": BaselineConfig(eta=6.4 * PX, epochs=50, steps=6, training=3, lr=5e-7, weight=0.1, search=50),
    "anti-diffusion": BaselineConfig(
        eta=6 * 1.3 * PX, step=0.26 * PX, epochs=6, steps=10, training=20, lr=5e-7, prompt_steps=30, prompt_lr=1e-3
    ),
    "mist": BaselineConfig(eta=7 * PX, step=PX, steps=100, weight=1e4),  # 16 px in its paper, 7 in the DLADiff paper
    "caat": BaselineConfig(eta=6.4 * PX, steps=250, lr=1e-5),
    "ace": BaselineConfig(eta=4 * PX, epochs=5, steps=50, training=10, lr=1e-4, rank=4),
    "random": BaselineConfig(eta=16 * PX, least_psnr=35.06),  # the paper's own for its method (Table 9)
    "none": BaselineConfig(eta=0.0),
}
"""Name to the schedule of its paper, for a full-size base model."""

TINY: dict[str, dict[str, Any]] = {
    # As many PGD steps as ours takes on this model (8 epochs of 6), learning rates as far up as ours
    "fsmg": {"steps": 48, "training": 160, "lr": 5e-4},
    "aspl": {"epochs": 8, "lr": 2e-4},
    "disdiff": {"epochs": 8, "lr": 2e-4, "search": 8},
    "anti-diffusion": {"training": 5, "lr": 2e-4, "prompt_steps": 10, "prompt_lr": 1e-2},
    "mist": {"steps": 48},
    "caat": {"steps": 48, "lr": 4e-4},
    "ace": {"epochs": 4, "steps": 12, "lr": 5e-3},
}
"""What differs on the tiny model."""


def schedule_for(method: str, model: str) -> BaselineConfig:
    """Return the default schedule of a method on a base model (`embedded` is the tiny one)."""
    return SCHEDULES[method].replaced(**(TINY.get(method, {}) if model == "embedded" else {}))
