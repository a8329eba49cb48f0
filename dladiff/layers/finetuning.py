"""Layer 1 (Algorithm 1): the perturbation against fine-tuning, from a static and a dynamic surrogate."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from dladiff.core.field import Perturbation, Squares
from dladiff.core.pixels import Images
from dladiff.diffusion.attention import map_distance
from dladiff.diffusion.base_model import BaseModel, Batch, Noise, Posterior, ReadMaps, recompute
from dladiff.diffusion.graphs import Graphs
from dladiff.diffusion.trainer import MicroBatch, Trainer, in_parts
from dladiff.settings.schema import FinetuningConfig

ATTENTION, DENOISING = "attention steps", "denoising steps"
"""The two stages of an epoch."""
Losses = dict[str, list[Tensor]]
"""Losses of every step in order, by stage; filled only for a trace."""


def static_surrogate(
    surrogate: BaseModel,
    clean: Images,
    config: FinetuningConfig,
    generator: Generator,
    losses: Losses | None = None,
) -> Any:
    """Algorithm 1, lines 1-9: return a frozen copy of the network fine-tuned on the clean set `m 3 r r`."""
    network = surrogate.fresh_network(config.low_rank)
    recompute(network, config.recompute)
    prompt = surrogate.prompt(config.prompt)
    host, graphs = surrogate.host if config.offload else None, _graphs(surrogate, config)
    trainer = Trainer(network, config.lr_static, config.weight_decay, host, graphs)
    size = min(config.batch, len(clean))
    posterior = surrogate.encode_fixed(clean, min(config.batch_photos, size))
    order: list[int] = []
    for _ in range(config.iter_ft):
        if len(order) < size:
            order += torch.randperm(len(clean), generator=generator).tolist()
        batch, order = posterior.pick(order[:size]), order[size:]
        noise = surrogate.draw([generator] * size, clean.shape[-1])
        training_batch = Batch(surrogate.latents(batch, noise), noise, prompt)
        loss = trainer.step(surrogate, in_parts(training_batch, config.batch_photos))
        _keep(losses, "static surrogate", loss)
    return surrogate.freeze(network)


def perturb(
    surrogate: BaseModel,
    static: Any,
    x: Images,
    config: FinetuningConfig,
    generators: list[Generator],
    losses: Losses | None = None,
    perturbation: Perturbation | None = None,
) -> Tensor:
    """Algorithm 1, lines 10-41: return the perturbation `n 3 r r` of the views `n 3 r r` of one identity's photos.

    `generators`: one stream for each view. `perturbation`: what is optimised; by default each view is a working square
    with a perturbation of its own. All views share one dynamic surrogate, which starts from the pretrained weights and
    is trained on perturbed views only. `config.batch_photos` views are processed at once; this number does not change
    the result, except for rounding.
    """
    prompt = surrogate.prompt(config.prompt)
    dynamic = surrogate.fresh_network(config.low_rank)
    recompute(dynamic, config.recompute)
    surrogate.recompute_vae(config.recompute)
    host, graphs = surrogate.host if config.offload else None, _graphs(surrogate, config)
    trainer = Trainer(dynamic, config.lr_dynamic, config.weight_decay, host, graphs)
    size = min(config.batch_photos, len(x))
    parts = [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]
    map_reader = surrogate.map_reader(config.attention_resolution)
    networks = (static, dynamic)
    ascents = [
        _Ascent(surrogate, networks, map_reader, x[part], config, generators[part], graphs, losses) for part in parts
    ]
    perturbation = perturbation or Squares(x, config.eta, config.min_psnr)

    def training_part(posterior: Posterior, part: slice) -> MicroBatch:
        own = generators[part]
        noise = surrogate.draw(own, x.shape[-1])
        batch = Batch(surrogate.latents(posterior, noise), noise, prompt)
        return MicroBatch(batch, surrogate.prior_batch(own), len(own) / len(x))

    for epoch in range(config.iter_opt):
        graphs.ready = epoch > 1  # by then each kind of step has run once
        if epoch:  # trains for the epoch before, so that no training follows the last epoch: nothing would use it
            static.to(surrogate.host if config.offload else surrogate.device)
            point = x + perturbation.views()
            posteriors = [surrogate.encode_fixed(point[part], size) for part in parts]
            for _ in range(config.iter_3):
                loss = trainer.step(surrogate, map(training_part, posteriors, parts), config.prior_weight)
                _keep(losses, "dynamic surrogate", loss)
            static.to(surrogate.device)
        perturbation.refresh()
        for stage, steps in ((ATTENTION, config.iter_1), (DENOISING, config.iter_2)):
            for _ in range(steps):  # lines 15-34
                point = x + perturbation.views()
                gradients = [ascent.gradient(stage, point[part]) for part, ascent in zip(parts, ascents, strict=True)]
                perturbation.ascend(torch.cat(gradients), config.step_size)
    return perturbation.views()


def iterations(config: FinetuningConfig, squares: int) -> dict[str, int]:
    """Return the number of training steps and of perturbation steps in `perturb`; each square counts its own steps."""
    training = max(0, config.iter_opt - 1) * config.iter_3
    return {"training": training, "perturbation": config.iter_opt * (config.iter_1 + config.iter_2) * squares}


def _keep(losses: Losses | None, stage: str, loss: Tensor) -> None:
    if losses is not None:
        losses.setdefault(stage, []).append(loss.detach())


def _graphs(surrogate: BaseModel, config: FinetuningConfig) -> Graphs:
    """Return graphs, enabled if no step needs the host: offloading and recomputation do."""
    capturable = not (config.offload or config.recompute)
    return Graphs(surrogate.device, surrogate.use_cuda_graphs and capturable)


class _Ascent:
    """Gradients of the attention and the denoising loss, for the views that are processed at once."""

    def __init__(
        self,
        surrogate: BaseModel,
        networks: tuple[Any, Any],
        map_reader: ReadMaps,
        x: Images,
        config: FinetuningConfig,
        generators: list[Generator],
        graphs: Graphs,
        losses: Losses | None,
    ) -> None:
        self.surrogate, (self.static, self.dynamic) = surrogate, networks
        self.map_reader, self.losses = map_reader, losses
        self.x, self.config, self.generators = x, config, generators
        self.prompt = surrogate.prompt(config.prompt)
        self.clean = surrogate.encode_fixed(x, len(x))
        self.steps = {
            stage: graphs.captured(partial(_loss_gradient, loss))
            for stage, loss in ((ATTENTION, self.attention), (DENOISING, self.denoising))
        }

    def gradient(self, stage: str, point: Tensor) -> Tensor:
        """Return the gradient of a stage's loss at x + delta, `n 3 r r`, with fresh timesteps and noise."""
        noise = self.surrogate.draw(self.generators, self.x.shape[-1])
        gradient, loss = self.steps[stage](point, noise.t, noise.latent, noise.posterior)
        _keep(self.losses, stage, loss)
        return gradient

    def attention(self, point: Tensor, noise: Noise) -> Tensor:
        """Return the attention loss (Eq. 8), mean over the views; both branches get the same timestep and noise."""

        def forward(network: Any, posterior: Posterior) -> Tensor:
            latents = self.surrogate.latents(posterior, noise)
            return self.surrogate.predict(network, latents, noise, self.prompt)

        with self.surrogate.autocast():
            with torch.no_grad():
                clean_maps = self.map_reader(self.static, lambda: forward(self.static, self.clean))
            maps = self.map_reader(self.dynamic, lambda: forward(self.dynamic, self.surrogate.encode(point)))
            return map_distance(clean_maps, maps, self_weight=self.config.self_weight)

    def denoising(self, point: Tensor, noise: Noise) -> Tensor:
        """Return the denoising loss (Eq. 3), mean over the views."""
        with self.surrogate.autocast():
            latents = self.surrogate.latents(self.surrogate.encode(point), noise)
            return self.surrogate.loss(self.dynamic, latents, noise, self.prompt)


def _loss_gradient(loss: Callable[[Tensor, Noise], Tensor], point: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the loss summed over the views `n 3 r r`, and the mean loss."""
    point = point.detach().requires_grad_(True)
    mean = loss(point, Noise(*noise))
    (gradient,) = torch.autograd.grad(mean * len(point), point)
    return gradient, mean.detach()
