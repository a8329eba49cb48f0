"""Layer 1, Algorithm 1: the perturbation against fine-tuning, with a static and a dynamic surrogate."""

from collections.abc import Callable
from functools import partial

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from torch import Generator, Tensor

from dladiff.core.ball import project
from dladiff.core.pgd import Momentum, pgd
from dladiff.core.pixels import Images
from dladiff.core.transforms import draw_transform
from dladiff.core.visibility import Measure, smoothing, within_lpips
from dladiff.diffusion.attention import MapReader, map_distance
from dladiff.diffusion.graphs import Graphs, Step
from dladiff.diffusion.surrogate import Batch, Noise, Posterior, Surrogate
from dladiff.diffusion.trainer import Part, Trainer, in_parts
from dladiff.settings.schema import FinetuningConfig

Losses = dict[str, list[Tensor]]
"""The loss of every step, by stage, as they come; kept where someone asks for them."""


def static_surrogate(
    surrogate: Surrogate,
    clean: Images,
    config: FinetuningConfig,
    generator: Generator,
    losses: Losses | None = None,
) -> UNet2DConditionModel:
    """Algorithm 1, lines 1-9: fine-tune a copy of the UNet on the clean set `m 3 r r`; frozen on return."""
    unet = surrogate.fresh_unet()
    _recompute(unet, config.recompute)
    prompt = surrogate.prompt(config.prompt)
    host, graphs = surrogate.host if config.offload else None, _graphs(surrogate, config)
    trainer = Trainer(unet, config.lr_static, config.weight_decay, host, graphs)
    size = min(config.batch, len(clean))
    posterior = surrogate.encode_fixed(clean, min(config.batch_photos, size))
    order: list[int] = []
    for _ in range(config.iter_ft):
        if len(order) < size:
            order += torch.randperm(len(clean), generator=generator).tolist()
        batch, order = posterior.pick(order[:size]), order[size:]
        noise = surrogate.draw([generator] * size, clean.shape[-1])
        taught = Batch(surrogate.latents(batch, noise), noise, prompt)
        loss = trainer.step(surrogate, in_parts(taught, config.batch_photos))
        _keep(losses, "static surrogate", loss)
    return surrogate.as_it_is(unet)


def perturb(
    surrogate: Surrogate,
    static: UNet2DConditionModel,
    x: Images,
    config: FinetuningConfig,
    generators: list[Generator],
    losses: Losses | None = None,
    lpips: Measure | None = None,
) -> Tensor:
    """Algorithm 1, lines 10-41: the perturbation `n 3 r r` of the working squares `n 3 r r` of one identity.

    `generators` holds one stream per square; `lpips` measures for `most_lpips`. The dynamic surrogate starts from the
    pretrained weights and never sees a clean photo. All squares share it; `batch_photos` of them are on the device at
    once, which changes no step.
    """
    prompt = surrogate.prompt(config.prompt)
    dynamic = surrogate.fresh_unet()
    _recompute(dynamic, config.recompute)
    _recompute(surrogate.vae, config.recompute)
    host, graphs = surrogate.host if config.offload else None, _graphs(surrogate, config)
    trainer = Trainer(dynamic, config.lr_dynamic, config.weight_decay, host, graphs)
    size = min(config.batch_photos, len(x))
    parts = [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]
    read = MapReader(config.attention_resolution)
    unets = (static, dynamic)
    ascents = [_Ascent(surrogate, unets, read, x[part], config, generators[part], graphs, losses) for part in parts]
    delta = torch.zeros_like(x)

    def taught(posterior: Posterior, part: slice) -> Part:
        own = generators[part]
        noise = surrogate.draw(own, x.shape[-1])
        batch = Batch(surrogate.latents(posterior, noise), noise, prompt)
        return Part(batch, surrogate.prior_batch(own), len(own) / len(x))

    for epoch in range(config.iter_opt):
        graphs.ready = epoch > 1  # every kind of step has been taken by then
        if epoch:  # the last epoch would train a surrogate that no step asks any more
            static.to(surrogate.host if config.offload else surrogate.device)
            posteriors = [surrogate.encode_fixed(x[part] + delta[part], size) for part in parts]
            for _ in range(config.iter_3):
                loss = trainer.step(surrogate, map(taught, posteriors, parts), config.prior_weight)
                _keep(losses, "dynamic surrogate", loss)
            static.to(surrogate.device)
        for part, ascent in zip(parts, ascents, strict=True):
            delta[part] = ascent(delta[part])
        if config.most_lpips and lpips is not None:
            delta = within_lpips(delta, x, lpips, config.most_lpips)
    return delta


def iterations(config: FinetuningConfig, squares: int) -> dict[str, int]:
    """Return how many steps `perturb` takes: training steps, and perturbation steps, one of one square."""
    training = max(0, config.iter_opt - 1) * config.iter_3
    return {"training": training, "perturbation": config.iter_opt * (config.iter_1 + config.iter_2) * squares}


def _keep(losses: Losses | None, stage: str, loss: Tensor) -> None:
    if losses is not None:
        losses.setdefault(stage, []).append(loss.detach())


def _recompute(network: ModelMixin, on: bool) -> None:
    if on != network.is_gradient_checkpointing:
        (network.enable_gradient_checkpointing if on else network.disable_gradient_checkpointing)()


def _graphs(surrogate: Surrogate, config: FinetuningConfig) -> Graphs:
    """Record steps where nothing in them asks the host: no transforms, no memory moved, no layers computed again."""
    return Graphs(surrogate.device, surrogate.recorded and not (config.robust or config.offload or config.recompute))


class _Ascent:
    """The two stages of an epoch's perturbation steps, for the squares that are on the device at once."""

    def __init__(
        self,
        surrogate: Surrogate,
        unets: tuple[UNet2DConditionModel, UNet2DConditionModel],
        read: MapReader,
        x: Images,
        config: FinetuningConfig,
        generators: list[Generator],
        graphs: Graphs,
        losses: Losses | None,
    ) -> None:
        self.surrogate, (self.static, self.dynamic) = surrogate, unets
        self.read, self.losses = read, losses
        self.x, self.config, self.generators = x, config, generators
        self.prompt = surrogate.prompt(config.prompt)
        instance = self.prompt.instance
        self.tokens = [instance] if config.tokens == "instance" and instance is not None else None
        self.clean = surrogate.encode_fixed(x, len(x))
        self.smooth = smoothing(x, config.smooth)
        stages = (
            ("attention steps", self.attention, config.iter_1),
            ("denoising steps", self.denoising, config.iter_2),
        )
        self.stages = [
            (
                partial(self._slope, name, graphs.of(partial(_gradient, loss))),
                steps,
                Momentum(config.momentum, config.gradient) if config.momentum else config.gradient,
            )
            for name, loss, steps in stages
        ]

    def __call__(self, delta: Tensor) -> Tensor:
        """Algorithm 1, lines 15-34: `iter_1` attention steps, then `iter_2` denoising steps."""
        for slope, steps, gradient in self.stages:
            delta = pgd(
                self.x,
                delta,
                slope,
                allowed=self.allowed,
                step=self.config.step,
                steps=steps,
                gradient=gradient,
            )
        return delta

    def allowed(self, delta: Tensor) -> Tensor:
        """Bring a perturbation back to what the settings allow."""
        config = self.config
        return project(self.smooth(delta) if config.smooth else delta, self.x, config.eta, config.least_psnr)

    def attention(self, point: Tensor, noise: Noise) -> Tensor:
        """Eq. 8, mean over the squares: both branches see the same timestep and noise."""

        def forward(unet: UNet2DConditionModel, posterior: Posterior) -> Tensor:
            latents = self.surrogate.latents(posterior, noise)
            return self.surrogate.predict(unet, latents, noise, self.prompt)

        with self.surrogate.autocast():
            with torch.no_grad():
                want = self.read(self.static, lambda: forward(self.static, self.clean))
            have = self.read(self.dynamic, lambda: forward(self.dynamic, self.surrogate.encode(self._as_stolen(point))))
            return map_distance(want, have, self_weight=self.config.self_weight, tokens=self.tokens)

    def denoising(self, point: Tensor, noise: Noise) -> Tensor:
        """Eq. 3, mean over the squares."""
        with self.surrogate.autocast():
            latents = self.surrogate.latents(self.surrogate.encode(self._as_stolen(point)), noise)
            return self.surrogate.loss(self.dynamic, latents, noise, self.prompt)

    def _as_stolen(self, point: Images) -> Images:
        if not self.config.robust:
            return point
        changes = [draw_transform(generator, mirrored=False) for generator in self.generators]
        return torch.cat([change(image[None]) for change, image in zip(changes, point, strict=True)])

    def _slope(self, stage: str, gradient: Step, point: Tensor) -> Tensor:
        noise = self.surrogate.draw(self.generators, self.x.shape[-1])
        slope, loss = gradient(point, noise.t, noise.latent, noise.posterior)
        _keep(self.losses, stage, loss)
        return slope


def _gradient(loss: Callable[[Tensor, Noise], Tensor], point: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the squares' summed loss in each of them, and the mean loss."""
    point = point.detach().requires_grad_(True)
    mean = loss(point, Noise(*noise))
    (slope,) = torch.autograd.grad(mean * len(point), point)
    return slope, mean.detach()
