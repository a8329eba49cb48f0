"""Recorded steps, as far as a machine without a GPU can tell; the rest is in tests/gpu."""

import pytest
import torch
from torch import Tensor

from dladiff.core.randomness import stream
from dladiff.diffusion.graphs import Graphs, Step
from dladiff.diffusion.surrogate import Batch, Surrogate
from dladiff.diffusion.trainer import Part, Trainer, in_parts

CPU = torch.device("cpu")


def test_without_a_gpu_a_step_stays_what_it_is() -> None:
    def step(x: Tensor) -> tuple[Tensor]:
        return (x + 1,)

    assert Graphs(CPU).of(step) is step and not Graphs(CPU).on


class Called(Graphs):
    """Counts as recording, and takes every step as it is: what is recorded is then seen on any machine."""

    on = True

    def of(self, step: Step) -> Step:
        return step


@pytest.mark.networks
@pytest.mark.parametrize("prior", [False, True])
def test_what_is_recorded_of_a_training_step_is_the_step(prior: bool) -> None:
    surrogate, found = Surrogate("embedded", CPU), []
    for graphs in (None, Called(CPU)):
        generators = [stream(i) for i in range(3)]
        unet = surrogate.fresh_unet()
        trainer = Trainer(unet, 1e-4, 1e-2, graphs=graphs)
        losses = []
        for _ in range(3):
            noise = surrogate.draw(generators, 64)
            batch = Batch(torch.randn(noise.latent.shape, generator=stream(9)), noise, surrogate.prompt("a"))
            parts = in_parts(batch, 2)
            if prior:
                parts = [Part(p.batch, p.batch, p.share) for p in parts]
            losses.append(float(trainer.step(surrogate, parts, 0.5)))
        found.append((losses, torch.cat([w.flatten() for w in unet.parameters()])))
        assert not any(w.requires_grad for w in unet.parameters())
    assert found[0][0] == found[1][0] and len(set(found[0][0])) == 3
    assert torch.equal(found[0][1], found[1][1])
