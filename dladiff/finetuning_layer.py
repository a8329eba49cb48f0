"""Layer 1, Algorithm 1: the perturbation against fine-tuning, with a static and a dynamic surrogate."""

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor

from dladiff.attention import MapReader, map_distance
from dladiff.config import FinetuningConfig
from dladiff.pgd import pgd
from dladiff.pixels import Images
from dladiff.surrogate import Batch, Posterior, Surrogate
from dladiff.trainer import Trainer


def static_surrogate(
    surrogate: Surrogate, clean: Images, config: FinetuningConfig, generator: Generator
) -> UNet2DConditionModel:
    """Algorithm 1, lines 1-9: fine-tune a copy of the UNet on the clean set `m 3 r r`; frozen on return."""
    unet = surrogate.fresh_unet("static")
    if config.iter_ft == 0:
        return unet
    prompt, _ = surrogate.prompt(config.prompt)
    trainer = Trainer(unet, config.lr_static, config.weight_decay)
    size = min(config.batch, len(clean))
    posterior = surrogate.encode_fixed(clean, size)
    order: list[int] = []
    for _ in range(config.iter_ft):
        if len(order) < size:
            order += torch.randperm(len(clean), generator=generator).tolist()
        batch, order = posterior.pick(order[:size]), order[size:]
        noise = surrogate.draw([generator] * size, clean.shape[-1])
        trainer.step(surrogate, Batch(surrogate.latents(batch, noise), noise, prompt))
    return unet


def perturb(
    surrogate: Surrogate,
    static: UNet2DConditionModel,
    x: Images,
    config: FinetuningConfig,
    generators: list[Generator],
) -> Tensor:
    """Algorithm 1, lines 10-41: the perturbation `b 3 r r` of one batch of working squares.

    `generators` holds one stream per image. The dynamic surrogate starts from the pretrained weights and
    never sees a clean photo.
    """
    resolution = x.shape[-1]
    prompt, instance = surrogate.prompt(config.prompt)
    tokens = [instance] if config.tokens == "instance" and instance is not None else None
    dynamic = surrogate.fresh_unet("dynamic")
    trainer = Trainer(dynamic, config.lr_dynamic, config.weight_decay)
    read = MapReader(config.attention_resolution)
    clean = surrogate.encode_fixed(x, len(x))
    delta = torch.zeros_like(x)

    def attention(point: Tensor) -> Tensor:
        noise = surrogate.draw(generators, resolution)

        def forward(unet: UNet2DConditionModel, posterior: Posterior) -> Tensor:
            return surrogate.predict(unet, surrogate.latents(posterior, noise), noise, prompt)

        with surrogate.autocast():
            with torch.no_grad():
                want = read(static, lambda: forward(static, clean))
            have = read(dynamic, lambda: forward(dynamic, surrogate.encode(point)))
            return map_distance(want, have, self_weight=config.self_weight, tokens=tokens)

    def denoising(point: Tensor) -> Tensor:
        noise = surrogate.draw(generators, resolution)
        with surrogate.autocast():
            return surrogate.loss(dynamic, surrogate.latents(surrogate.encode(point), noise), noise, prompt)

    def ascend(loss: Callable[[Tensor], Tensor], delta: Tensor, steps: int) -> Tensor:
        return pgd(x, delta, loss, eta=config.eta, step=config.step, steps=steps, gradient=config.gradient)

    for epoch in range(config.iter_opt):
        if epoch:  # the last epoch would train a surrogate that no step asks any more
            posterior = surrogate.encode_fixed(x + delta, len(x))
            for _ in range(config.iter_3):
                noise = surrogate.draw(generators, resolution)
                batch = Batch(surrogate.latents(posterior, noise), noise, prompt)
                trainer.step(surrogate, batch, surrogate.prior_batch(generators), config.prior_weight)
        delta = ascend(attention, delta, config.iter_1)
        delta = ascend(denoising, delta, config.iter_2)
    return delta
