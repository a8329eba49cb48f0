"""Training steps of a surrogate."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dladiff.diffusion.graphs import Graphs, Step
from dladiff.diffusion.surrogate import Batch, Noise, Surrogate


@dataclass(frozen=True)
class Part:
    """What a training step takes at a time: some photos, class images beside them or none, their share of the step."""

    batch: Batch
    prior: Batch | None = None
    share: float = 1.0

    def batches(self) -> list[Batch]:
        """Return the photos' batch, and that of the class images where there is one."""
        return [self.batch] if self.prior is None else [self.batch, self.prior]


GROUP = 2**27
"""Weights whose moments are on the device at once, where they otherwise wait in the host's memory: one gigabyte."""


def in_parts(batch: Batch, size: int) -> list[Part]:
    """Split a step into parts of at most `size` photos."""
    parts = [batch.pick(slice(start, start + size)) for start in range(0, len(batch.latents), size)]
    return [Part(part, share=len(part.latents) / len(batch.latents)) for part in parts]


class Trainer:
    """AdamW over one UNet copy: fp32 masters, gradients clipped to norm 1, state fresh for each identity.

    With `host`, its moments wait there between steps, and come to the weights' device a group at a time. With `graphs`
    its steps are recorded: each has parts of the same sizes, prompts and shares, and the same weight, as the first.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        lr: float,
        weight_decay: float,
        host: torch.device | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        self.unet, self.host = unet, host
        self.graphs = graphs if graphs is not None and host is None else Graphs(torch.device("cpu"))
        groups = [list(unet.parameters())] if host is None else list(_groups(unet.parameters()))
        self.optimisers = [
            torch.optim.AdamW(group, lr=lr, weight_decay=weight_decay, fused=True, capturable=self.graphs.on)
            for group in groups
        ]
        self.recorded: Step | None = None

    def step(self, surrogate: Surrogate, parts: Iterable[Part], weight: float = 1.0) -> Tensor:
        """One training step on L_cond, plus `weight` times that of the class images where there are any (L_db).

        The gradients of the parts add up, by their shares: what fits into memory at once changes no step. Weights are
        frozen again afterwards. Returns the loss before the step.
        """
        if not self.graphs.on:
            total = _learn(self.unet, surrogate, parts, weight)
            self._descend(surrogate.device)
            return total
        parts = list(parts)
        if self.recorded is None:  # nothing in it names this trainer: its memory goes as soon as the trainer does
            self.recorded = self.graphs.of(partial(_recordable, self.unet, self.optimisers, surrogate, parts, weight))
        (total,) = self.recorded(*_tensors(parts))
        return total

    def _descend(self, device: torch.device) -> None:
        for optimiser in self.optimisers:
            self._move(optimiser, device)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            self._move(optimiser, self.host)

    def _move(self, optimiser: torch.optim.Optimizer, where: torch.device | None) -> None:
        if self.host is None or where is None:
            return
        for state in optimiser.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                pinned = state[name].is_cuda  # at the bus's full speed, both ways
                state[name] = torch.empty_like(state[name], device=where, pin_memory=pinned).copy_(state[name])


def _learn(unet: UNet2DConditionModel, surrogate: Surrogate, parts: Iterable[Part], weight: float) -> Tensor:
    """Leave the clipped gradients of one step in the weights; return the loss."""
    unet.requires_grad_(True)
    total = torch.zeros((), device=surrogate.device)
    for part in parts:
        batch, prior = part.batch, part.prior
        with surrogate.autocast():
            loss = surrogate.loss(unet, batch.latents, batch.noise, batch.prompt)
            if prior is not None:
                loss = loss + weight * surrogate.loss(unet, prior.latents, prior.noise, prior.prompt)
        (part.share * loss).backward()  # type: ignore[no-untyped-call]
        total += part.share * loss.detach()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    unet.requires_grad_(False)
    return total


def _recordable(
    unet: UNet2DConditionModel,
    optimisers: list[torch.optim.AdamW],
    surrogate: Surrogate,
    like: list[Part],
    weight: float,
    *tensors: Tensor,
) -> tuple[Tensor]:
    """Take one step on parts like these, whose tensors are `tensors`."""
    left = iter(tensors)
    parts = []
    for part in like:
        own = [Batch(next(left), Noise(next(left), next(left), next(left)), b.prompt) for b in part.batches()]
        parts.append(Part(own[0], own[1] if part.prior else None, part.share))
    total = _learn(unet, surrogate, parts, weight)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return (total,)


def _tensors(parts: list[Part]) -> list[Tensor]:
    """Return what changes from step to step."""
    batches = [batch for part in parts for batch in part.batches()]
    return [each for b in batches for each in (b.latents, b.noise.t, b.noise.latent, b.noise.posterior)]


def _groups(weights: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    group: list[nn.Parameter] = []
    for weight in weights:
        group.append(weight)
        if sum(w.numel() for w in group) >= GROUP:
            yield group
            group = []
    if group:
        yield group
