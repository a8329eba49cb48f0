"""Training steps of a surrogate."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from dladiff.surrogate import Batch, Surrogate


class Trainer:
    """AdamW over one UNet copy: fp32 masters, gradients clipped to norm 1, state fresh for each identity."""

    def __init__(self, unet: UNet2DConditionModel, lr: float, weight_decay: float) -> None:
        self.unet = unet
        self.optimiser = torch.optim.AdamW(unet.parameters(), lr=lr, weight_decay=weight_decay, fused=True)

    def step(self, surrogate: Surrogate, batch: Batch, prior: Batch | None = None, weight: float = 1.0) -> Tensor:
        """One training step on L_cond, plus `weight` times that of the class images where there are any (L_db).

        Weights are frozen again afterwards. Returns the loss before the step.
        """
        self.unet.requires_grad_(True)
        with surrogate.autocast():
            loss = surrogate.loss(self.unet, batch.latents, batch.noise, batch.prompt)
            if prior is not None:
                loss = loss + weight * surrogate.loss(self.unet, prior.latents, prior.noise, prior.prompt)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.unet.requires_grad_(False)
        return loss.detach()
