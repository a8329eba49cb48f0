"""Training steps of a surrogate."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from dladiff.surrogate import Batch, Surrogate


@dataclass(frozen=True)
class Part:
    """What a training step takes at a time: some photos, class images beside them or none, their share of the step."""

    batch: Batch
    prior: Batch | None = None
    share: float = 1.0


class Trainer:
    """AdamW over one UNet copy: fp32 masters, gradients clipped to norm 1, state fresh for each identity."""

    def __init__(self, unet: UNet2DConditionModel, lr: float, weight_decay: float) -> None:
        self.unet = unet
        self.optimiser = torch.optim.AdamW(unet.parameters(), lr=lr, weight_decay=weight_decay, fused=True)

    def step(self, surrogate: Surrogate, parts: Iterable[Part], weight: float = 1.0) -> Tensor:
        """One training step on L_cond, plus `weight` times that of the class images where there are any (L_db).

        The gradients of the parts add up, by their shares: what fits into memory at once changes no step. Weights are
        frozen again afterwards. Returns the loss before the step.
        """
        self.unet.requires_grad_(True)
        total = torch.zeros((), device=surrogate.device)
        for part in parts:
            batch, prior = part.batch, part.prior
            with surrogate.autocast():
                loss = surrogate.loss(self.unet, batch.latents, batch.noise, batch.prompt)
                if prior is not None:
                    loss = loss + weight * surrogate.loss(self.unet, prior.latents, prior.noise, prior.prompt)
            (part.share * loss).backward()  # type: ignore[no-untyped-call]
            total += part.share * loss.detach()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.unet.requires_grad_(False)
        return total
