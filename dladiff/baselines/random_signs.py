"""The control: random signs of one magnitude, at a given PSNR."""

import torch
from torch import Tensor

from dladiff.baselines.task import Task
from dladiff.core.ball import project
from dladiff.settings.schedules import PX, BaselineConfig, Method

METHOD = Method(
    name="random",
    function="random_signs",
    maximises="nothing; random signs in whole grey levels, 35.06 dB in the working square",
    schedule=BaselineConfig(eta=16 * PX, min_psnr=35.06),  # the paper's own for its method (Table 9)
)

ROUNDS = 20


def random_signs(task: Task) -> Tensor:
    """Return `n 3 r r` of PSNR `schedule.min_psnr` each, including what clipping to [0, 1] removes.

    Magnitudes are whole grey levels, rounded up or down at random, so that storing the square as bytes changes nothing.
    Uses `x`, `schedule` and `generators` only. If `eta` is too small for that PSNR, the PSNR is higher.
    """
    x, schedule, generators = task.x, task.schedule, task.generators
    wanted = 10 ** (-schedule.min_psnr / 10)
    rows = []
    for square, own in zip(torch.split(x, 1), generators, strict=True):
        signs = (torch.randint(0, 2, square.shape, generator=own) * 2 - 1).to(square)
        rounding = torch.rand(square.shape, generator=own).to(square)

        def noise(levels: float, square: Tensor = square, signs: Tensor = signs, up: Tensor = rounding) -> Tensor:
            return project(signs * torch.floor(levels + up) / 255, square, schedule.eta)

        low, high = 0.0, schedule.eta * 255
        for _ in range(ROUNDS):
            middle = (low + high) / 2
            short = float(noise(middle).square().mean()) < wanted
            low, high = (middle, high) if short else (low, middle)
        rows.append(noise(high))
    return torch.cat(rows)
