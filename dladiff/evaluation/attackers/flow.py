"""Shared by the attacks on transformers: text, latents, the flow-matching loss and sampling, by diffusers' pipelines.

Flow matching (Lipman et al. 2023): at time t the network sees (1 - t) z + t e and learns e - z. Times, latents and
layers are those of diffusers' DreamBooth-LoRA scripts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Generator, Tensor
from torch.nn import functional

from dladiff.core.arrays import Pixels
from dladiff.evaluation.attackers.base import Base
from dladiff.evaluation.attacks import AttackSettings

ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
TEXT_STREAM = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
MLPS = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
DISTILLED_GUIDANCE = 3.5
"""Scale of guidance that FLUX.1 dev takes as an input in training, the scripts' default."""
LATENT_BATCH = 4


@dataclass(frozen=True)
class Kind:
    """What the scripts and pipelines of one family do."""

    layers: tuple[str, ...]
    """Layers that get low-rank matrices."""
    guidance: float
    """The pipeline's default scale of guidance."""
    logit_normal: bool = False
    """Whether the logit of a training time is normally distributed; else times are uniform."""
    guidance_name: str = "guidance_scale"
    """The pipeline's argument of it."""


KINDS = {
    "StableDiffusion3Pipeline": Kind((*ATTENTION, *TEXT_STREAM), 7.0, logit_normal=True),
    "FluxPipeline": Kind((*ATTENTION, *TEXT_STREAM, *MLPS), 3.5),
    "Flux2KleinPipeline": Kind((*ATTENTION, "attn.to_qkv_mlp_proj"), 4.0),
    "QwenImagePipeline": Kind(ATTENTION, 4.0, guidance_name="true_cfg_scale"),
}
"""By the pipeline's class."""


def kind_of(base: Base) -> Kind:
    """Return what the base's family does."""
    return KINDS[type(base.pipe).__name__]


def text_inputs(pipe: Any, prompt: str) -> dict[str, Any]:
    """Return a prompt as the transformer takes it, differentiable in the text encoders' trainable parameters."""
    name = type(pipe).__name__
    if name == "StableDiffusion3Pipeline":
        found = pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": found[0], "pooled_projections": found[2]}
    if name == "FluxPipeline":
        words, pooled, ids = pipe.encode_prompt(prompt, None)
        return {"encoder_hidden_states": words, "pooled_projections": pooled, "txt_ids": ids}
    words, second = pipe.encode_prompt(prompt)
    key = "txt_ids" if name == "Flux2KleinPipeline" else "encoder_hidden_states_mask"
    return {"encoder_hidden_states": words, key: second}


def posterior(base: Base, photos: Sequence[Pixels]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the photos' latents `b c h w`, normalised as the pipeline does.

    FLUX.2 is trained on the mean: its deviation is 0.
    """
    vae, name = base.pipe.vae, type(base.pipe).__name__
    x = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(base.device, vae.dtype)
    means, stds = [], []
    with torch.no_grad():
        for part in torch.split(x, LATENT_BATCH):
            found = vae.encode(part[:, :, None] if name == "QwenImagePipeline" else part).latent_dist
            means.append(found.mean.float())
            stds.append(found.std.float())
    mean, std = torch.cat(means), torch.cat(stds)
    if name == "Flux2KleinPipeline":
        centre, variance = vae.bn.running_mean.float(), vae.bn.running_var.float() + vae.config.batch_norm_eps
        mean = (base.pipe._patchify_latents(mean) - centre.view(1, -1, 1, 1)) / variance.sqrt().view(1, -1, 1, 1)
        return mean, torch.zeros_like(mean)
    if name == "QwenImagePipeline":
        centre, spread = (
            torch.tensor(values, device=base.device).view(1, -1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return (mean[:, :, 0] - centre) / spread, std[:, :, 0] / spread
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor, std * vae.config.scaling_factor


def velocity(pipe: Any, noisy: Tensor, t: Tensor, text: dict[str, Any]) -> Tensor:
    """Return the predicted velocity of noised latents `b c h w` at times `b`; one prompt for all."""
    name, transformer = type(pipe).__name__, pipe.transformer
    count, channels, height, width = noisy.shape
    rows = {key: _rows(value, count) for key, value in text.items() if value is not None and key != "txt_ids"}
    if name == "StableDiffusion3Pipeline":
        out: Tensor = transformer(hidden_states=noisy, timestep=t * 1000, return_dict=False, **rows)[0]
        return out
    if name == "Flux2KleinPipeline":
        ids = pipe._prepare_latent_ids(noisy).to(noisy.device)
        out = transformer(
            hidden_states=pipe._pack_latents(noisy), timestep=t, img_ids=ids, txt_ids=text["txt_ids"],
            return_dict=False, **rows,
        )[0]  # fmt: skip
        return out.transpose(1, 2).reshape(noisy.shape)
    tokens = pipe._pack_latents(noisy, count, channels, height, width)
    if name == "FluxPipeline":
        more: dict[str, Any] = {
            "txt_ids": text["txt_ids"],
            "img_ids": pipe._prepare_latent_image_ids(count, height // 2, width // 2, noisy.device, noisy.dtype),
            "guidance": torch.full_like(t, DISTILLED_GUIDANCE) if transformer.config.guidance_embeds else None,
        }
    else:
        more = {"img_shapes": [[(1, height // 2, width // 2)]] * count}
    out = transformer(hidden_states=tokens, timestep=t, return_dict=False, **rows, **more)[0]
    out = pipe._unpack_latents(out, height * 8, width * 8, 8)
    return out[:, :, 0] if out.dim() == 5 else out


def train(
    base: Base, pipe: Any, photos: Sequence[Pixels], settings: AttackSettings, seed: int, parameters: Iterable[Tensor],
    trains_text: bool = False,
) -> None:  # fmt: skip
    """Train parameters of the pipeline's transformer, or of its text encoders (`trains_text`), by AdamW.

    The loss is DreamBooth's (Ruiz et al. 2023) without the prior term, by flow matching. `photos`: r x r x 3.
    """
    trainable = list(parameters)
    for parameter in trainable:
        parameter.requires_grad_(True)
    generator = Generator().manual_seed(seed)
    mean, std = posterior(base, photos)
    sigmas = _grid(pipe)
    optimiser = torch.optim.AdamW(trainable, lr=settings.lr, weight_decay=1e-2)
    with torch.no_grad():
        fixed = text_inputs(pipe, settings.prompt)
    order: list[int] = []
    for _ in range(settings.steps):
        while len(order) < settings.batch:
            order += torch.randperm(len(photos), generator=generator).tolist()
        rows, order = order[: settings.batch], order[settings.batch :]
        u = torch.rand(len(rows), generator=generator)
        if kind_of(base).logit_normal:
            u = torch.randn(len(rows), generator=generator).sigmoid()
        t = sigmas[(u * len(sigmas)).long().clamp_max(len(sigmas) - 1)].to(base.device)
        z = mean[rows] + std[rows] * torch.randn(mean[rows].shape, generator=generator).to(mean)
        noise = torch.randn(z.shape, generator=generator).to(z)
        time = t.view(-1, 1, 1, 1)
        with torch.autocast(base.device.type, torch.bfloat16, enabled=base.device.type == "cuda"):
            text = text_inputs(pipe, settings.prompt) if trains_text else fixed
            predicted = velocity(pipe, (1 - time) * z + time * noise, t, text)
        loss = functional.mse_loss(predicted.float(), noise - z)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()


def pictures(base: Base, pipe: Any, settings: AttackSettings, prompt: str, count: int, seed: int) -> list[Pixels]:
    """Generate images one by one. An image's noise depends on `seed` and its number only."""
    kind, images = kind_of(base), []
    pipe.set_progress_bar_config(disable=True)
    guided = {"negative_prompt": " "} if kind.guidance_name == "true_cfg_scale" else {}
    for number in range(count):
        with torch.no_grad():
            image = pipe(
                prompt=prompt,
                height=base.resolution,
                width=base.resolution,
                num_inference_steps=settings.sampling_steps,
                generator=Generator().manual_seed(seed * 1_000_003 + number),
                output_type="np",
                **guided,
                **{kind.guidance_name: settings.guidance or kind.guidance},
            ).images[0]
        images.append(np.asarray((image * 255).round(), np.uint8))
    return images


def _grid(pipe: Any) -> Tensor:
    """Return the times of training, from noise on, with the schedule's fixed shift."""
    sigmas: Tensor = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config).sigmas
    return sigmas[:-1] if float(sigmas[-1]) == 0 else sigmas


def _rows(value: Tensor, count: int) -> Tensor:
    return value.expand(count, *value.shape[1:])
