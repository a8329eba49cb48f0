"""CAAT (Xu et al. 2024): alternate steps on the perturbation and on the cross-attention's keys and values.

Each step ascends L_cond in the photos and descends it in these weights, at the same timesteps and noise.
"""

from functools import partial

import torch
from torch import Tensor, nn

from dladiff.baselines.task import Task
from dladiff.baselines.trainable import TrainableSurrogate
from dladiff.core.ball import around
from dladiff.core.pgd import gradient_of, pgd
from dladiff.settings.schedules import PX, BaselineConfig, Method

METHOD = Method(
    name="caat",
    function="caat",
    paper="Xu et al. 2024",
    year=2024,
    maximises="L_cond, while gradient descent on the cross-attention's keys and values minimises it",
    schedule=BaselineConfig(eta=6.4 * PX, steps=250, lr=1e-5),
    tiny={"steps": 48, "lr": 4e-4},
)


class KeysAndValues(TrainableSurrogate):
    """A UNet that trains to_k and to_v of cross-attention only."""

    def parameters(self) -> list[nn.Parameter]:
        """Return the weights of to_k and to_v in cross-attention."""
        return [
            weight for name, weight in self.unet.named_parameters() if ".attn2.to_k." in name or ".attn2.to_v." in name
        ]


def caat(task: Task) -> Tensor:
    """Return the perturbation `n 3 r r` of the squares `n 3 r r`; clean photos and `shared_generator` are not used."""
    surrogate, x, schedule, generators = task.surrogate, task.x, task.schedule, task.generators
    trainable = KeysAndValues(surrogate, schedule.prompt)
    learning = trainable.parameters()
    optimiser = torch.optim.AdamW(learning, lr=schedule.lr, weight_decay=1e-2)
    delta = torch.zeros_like(x)
    parts = [slice(start, start + schedule.batch) for start in range(0, len(x), schedule.batch)]
    for _ in range(schedule.steps):
        new = torch.zeros_like(x)
        for part in parts:
            noise = surrogate.draw(generators[part], x.shape[-1])
            new[part] = pgd(
                x[part],
                delta[part],
                gradient_of(partial(trainable.denoising_at, noise=noise)),
                projection=around(x[part], schedule.eta, schedule.min_psnr),
                step_size=schedule.step_size,
                steps=1,
            )
            for weight in learning:
                weight.requires_grad_(True)
            loss = trainable.denoising_at((x + delta)[part], noise) / len(x)
            loss.backward()  # type: ignore[no-untyped-call]
            for weight in learning:
                weight.requires_grad_(False)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        delta = new
    return delta
