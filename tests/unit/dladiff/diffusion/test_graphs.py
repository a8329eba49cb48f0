"""CUDA graphs, as far as they can be tested without a GPU; the rest is in tests/gpu."""

import pytest
import torch
from torch import Tensor

from dladiff.core.randomness import stream
from dladiff.diffusion.graphs import Graphs, Step
from dladiff.diffusion.surrogate import Batch, Surrogate
from dladiff.diffusion.trainer import MicroBatch, Trainer, in_parts

CPU = torch.device("cpu")


def test_without_a_gpu_a_step_is_returned_unchanged() -> None:
    def step(x: Tensor) -> tuple[Tensor]:
        return (x + 1,)

    assert Graphs(CPU).captured(step) is step and not Graphs(CPU).on


class EagerGraphs(Graphs):
    """Enabled graphs that run every step eagerly, so that the code to be captured runs on any machine."""

    on = True

    def captured(self, step: Step) -> Step:
        return step


@pytest.mark.networks
@pytest.mark.parametrize("prior", [False, True])
def test_the_captured_training_step_equals_the_eager_one(prior: bool) -> None:
    surrogate, found = Surrogate("embedded", CPU), []
    for graphs in (None, EagerGraphs(CPU)):
        generators = [stream(i) for i in range(3)]
        unet = surrogate.fresh_network()
        trainer = Trainer(unet, 1e-4, 1e-2, graphs=graphs)
        losses = []
        for _ in range(3):
            noise = surrogate.draw(generators, 64)
            batch = Batch(torch.randn(noise.latent.shape, generator=stream(9)), noise, surrogate.prompt("a"))
            parts = in_parts(batch, 2)
            if prior:
                parts = [MicroBatch(p.batch, p.batch, p.share) for p in parts]
            losses.append(float(trainer.step(surrogate, parts, 0.5)))
        found.append((losses, torch.cat([w.flatten() for w in unet.parameters()])))
        assert not any(w.requires_grad for w in unet.parameters())
    assert found[0][0] == found[1][0] and len(set(found[0][0])) == 3
    assert torch.equal(found[0][1], found[1][1])
