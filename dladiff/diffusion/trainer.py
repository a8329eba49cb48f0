"""AdamW training steps of a surrogate's network, with gradient accumulation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from dladiff.diffusion.base_model import BaseModel, Batch, Noise
from dladiff.diffusion.graphs import Graphs, Step


@dataclass(frozen=True)
class MicroBatch:
    """A share of a training step: photos, optional class images, and the photos' share of the whole step."""

    batch: Batch
    prior: Batch | None = None
    share: float = 1.0

    def batches(self) -> list[Batch]:
        """Return the batch of photos and, if present, of class images."""
        return [self.batch] if self.prior is None else [self.batch, self.prior]


GROUP = 2**27
"""Weights whose AdamW moments are moved to the device at once when offloaded: 1 GB of moments."""


def in_parts(batch: Batch, size: int) -> list[MicroBatch]:
    """Return the batch split into parts of at most `size` photos."""
    parts = [batch.pick(slice(start, start + size)) for start in range(0, len(batch.latents), size)]
    return [MicroBatch(part, share=len(part.latents) / len(batch.latents)) for part in parts]


class Trainer:
    """AdamW over one network: fp32 master weights, gradients clipped to norm 1; one trainer for each identity.

    With `host`, the moments stay there between steps and are moved to the device one group at a time. With `graphs`,
    steps are captured: every step must have parts of the same sizes, prompts and shares, and the same prior weight.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float,
        weight_decay: float,
        host: torch.device | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        self.network, self.host = network, host
        self.graphs = graphs if graphs is not None and host is None else Graphs(torch.device("cpu"))
        groups = [list(network.parameters())] if host is None else list(_groups(network.parameters()))
        self.optimisers = [
            torch.optim.AdamW(group, lr=lr, weight_decay=weight_decay, fused=True, capturable=self.graphs.on)
            for group in groups
        ]
        self.captured_step: Step | None = None

    def step(self, surrogate: BaseModel, parts: Iterable[MicroBatch], weight: float = 1.0) -> Tensor:
        """Take one training step on L_cond plus `weight` times the class images' loss (L_db); return the loss.

        Gradients accumulate over the parts, weighted by their shares, so the split does not change the step. The
        network's weights do not require gradients afterwards.
        """
        if not self.graphs.on:
            total = _accumulate_gradients(self.network, surrogate, parts, weight)
            self._optimiser_step(surrogate.device)
            return total
        parts = list(parts)
        if self.captured_step is None:
            # The step must not refer to this trainer, so that its memory is freed together with the trainer.
            step = partial(_training_step, self.network, self.optimisers, surrogate, parts, weight)
            self.captured_step = self.graphs.captured(step)
        (total,) = self.captured_step(*_tensors(parts))
        return total

    def _optimiser_step(self, device: torch.device) -> None:
        for optimiser in self.optimisers:
            self._move(optimiser, device)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            self._move(optimiser, self.host)

    def _move(self, optimiser: torch.optim.Optimizer, device: torch.device | None) -> None:
        if self.host is None or device is None:
            return
        for state in optimiser.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                pinned = state[name].is_cuda  # pinned host memory is copied at the bus's full speed
                state[name] = torch.empty_like(state[name], device=device, pin_memory=pinned).copy_(state[name])


def _accumulate_gradients(
    network: nn.Module, surrogate: BaseModel, parts: Iterable[MicroBatch], weight: float
) -> Tensor:
    """Set the clipped gradients of one step on the network's weights; return the loss."""
    network.requires_grad_(True)
    total = torch.zeros((), device=surrogate.device)
    for part in parts:
        batch, prior = part.batch, part.prior
        with surrogate.autocast():
            loss = surrogate.loss(network, batch.latents, batch.noise, batch.prompt)
            if prior is not None:
                loss = loss + weight * surrogate.loss(network, prior.latents, prior.noise, prior.prompt)
        (part.share * loss).backward()  # type: ignore[no-untyped-call]
        total += part.share * loss.detach()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    network.requires_grad_(False)
    return total


def _training_step(
    network: nn.Module,
    optimisers: list[torch.optim.AdamW],
    surrogate: BaseModel,
    like: list[MicroBatch],
    weight: float,
    *tensors: Tensor,
) -> tuple[Tensor]:
    """Take one training step on `tensors`, arranged like the parts `like`; return the loss."""
    remaining = iter(tensors)
    parts = []
    for part in like:
        batches = [
            Batch(next(remaining), Noise(next(remaining), next(remaining), next(remaining)), b.prompt)
            for b in part.batches()
        ]
        parts.append(MicroBatch(batches[0], batches[1] if part.prior else None, part.share))
    total = _accumulate_gradients(network, surrogate, parts, weight)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return (total,)


def _tensors(parts: list[MicroBatch]) -> list[Tensor]:
    """Return the tensors that change from step to step."""
    batches = [batch for part in parts for batch in part.batches()]
    return [tensor for b in batches for tensor in (b.latents, b.noise.t, b.noise.latent, b.noise.posterior)]


def _groups(weights: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    group: list[nn.Parameter] = []
    for weight in weights:
        group.append(weight)
        if sum(w.numel() for w in group) >= GROUP:
            yield group
            group = []
    if group:
        yield group
