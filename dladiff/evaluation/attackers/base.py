"""Shared by all attacks: the attacker's base model, default settings, the denoising loss and sampling."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Generator, Tensor, nn
from torch.nn import functional

from dladiff.core.arrays import Pixels
from dladiff.diffusion.architecture import foreign_part
from dladiff.diffusion.graphs import Graphs
from dladiff.diffusion.model_json import read_object
from dladiff.errors import ModelError
from dladiff.evaluation.attacks import ATTACKS, TINY, AttackSettings

TRANSFORMERS = ("StableDiffusion3Pipeline", "FluxPipeline", "Flux2KleinPipeline", "QwenImagePipeline")
"""Pipelines of transformers that are attacked."""
TRAINING_SIDE = 512
"""Side of a transformer's training photos, pixels: the default of diffusers' scripts. Their networks take any."""
SAMPLING_BATCH = 8
"""Images of one sampling batch; it bounds memory."""


@dataclass(frozen=True)
class Base:
    """A base model that the attacker customizes. Attacks train copies; the base itself never changes."""

    pipe: Any
    """StableDiffusionPipeline or StableDiffusionXLPipeline, fp32, without a safety checker, or a transformer's."""
    resolution: int
    """Side in px of its training photos."""
    region: str
    """Crop that the attacker trains on: `face` (the square around the face) or `photo` (the middle square)."""
    name: str
    device: torch.device

    @property
    def sdxl(self) -> bool:
        """Tell whether this is SDXL, with two text encoders."""
        return isinstance(self.pipe, StableDiffusionXLPipeline)

    @property
    def transformer(self) -> bool:
        """Tell whether its network is a transformer."""
        return type(self.pipe).__name__ in TRANSFORMERS


def load_base(folder: str | Path, device: torch.device | str = "cpu") -> Base:
    """Load a folder in the diffusers layout (Stable Diffusion, SDXL or one of TRANSFORMERS), or `embedded`.

    `region` is `face` for models trained on face crops only: the tiny bundle, and models whose model_index.json has
    `"_region": "face"` (written by dladiff.training.base). It is `photo` for all others.
    On a GPU transformers are bf16. Raises ModelError.
    """
    tiny = str(folder) == "embedded"
    root = TINY / "bundle" if tiny else Path(folder)
    if not (root / "model_index.json").is_file():
        raise ModelError(f"no diffusers model in {root}: expected model_index.json; name the folder of a base model")
    try:
        without: dict[str, Any]
        index = read_object(root / "model_index.json")
        if foreign := foreign_part(index):
            raise ModelError(f"the base model in {root} needs custom code for {foreign}, which is never run")
        if index.get("_class_name") == "StableDiffusionXLPipeline":
            kind, without = StableDiffusionXLPipeline, {}
        elif index.get("_class_name") in TRANSFORMERS:
            kind, without = getattr(diffusers, index["_class_name"]), {}
        else:
            kind, without = StableDiffusionPipeline, {"safety_checker": None}
        pipe = kind.from_pretrained(root, **without, local_files_only=True, use_safetensors=True)
    except ModelError:
        raise
    except Exception as error:  # damage raises errors of diffusers, safetensors and tokenizers
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the base model in {root} cannot be loaded: {why}") from error
    device = torch.device(device)
    whole = index.get("_class_name") in TRANSFORMERS
    dtype = torch.bfloat16 if whole and device.type == "cuda" else torch.float32
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False).to(device, dtype)
    resolution = TRAINING_SIDE if whole else pipe.unet.config.sample_size * pipe.vae_scale_factor
    region = "face" if tiny or index.get("_region") == "face" else "photo"
    return Base(pipe, resolution, region, "tiny" if tiny else root.name, device)


def load_unet_base(folder: str | Path, device: torch.device | str = "cpu") -> Base:
    """Load a base model whose network is a U-Net; see `load_base`. Raises ModelError, also for a transformer."""
    base = load_base(folder, device)
    if base.transformer:
        raise ModelError(f"{folder} is a transformer; purifiers take a Stable Diffusion model")
    return base


def settings_for(attack: str, base: Base) -> AttackSettings:
    """Return an attack's default settings for this base model. Raises ModelError: it does not support this kind."""
    kind = "tiny" if base.region == "face" else "sdxl" if base.sdxl else "full_size"
    kind = "transformer" if base.transformer else kind
    known = {name: record.settings()[kind] for name, record in ATTACKS.items() if kind in record.settings()}
    if attack not in known:
        model = "a transformer" if base.transformer else "SDXL" if base.sdxl else "SD 1.x or 2.x"
        raise ModelError(f"{attack} does not attack {base.name} ({model}); attacks that do: {', '.join(known)}")
    return known[attack]


def embed(base: Base, text_encoder: Any, prompt: str) -> Tensor:
    """Return the embedding `1 n d` of a prompt, differentiable in the text encoder's trainable parameters."""
    tokenizer = base.pipe.tokenizer
    ids = tokenizer(
        [prompt], padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    hidden: Tensor = text_encoder(ids.to(base.device))[0]
    return hidden


def customize(
    base: Base,
    photos: Sequence[Pixels],
    settings: AttackSettings,
    unet: Any,
    text_encoder: Any,
    seed: int,
    parameters: Iterable[Tensor],
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train `parameters` (of `unet` or `text_encoder`) on the photos with AdamW and the denoising loss.

    The loss is DreamBooth's (Ruiz et al. 2023) without the prior term. Gal et al. 2023 and Hu et al. 2022 minimise it
    over other weights. `photos` are r x r x 3, with r the base's resolution. `after_step` runs after each step.
    """
    trainable = list(parameters)
    for parameter in trainable:
        parameter.requires_grad_(True)
    generator, pipe = Generator().manual_seed(seed), base.pipe
    alphas = _alphas(pipe).to(base.device)
    posterior = _posterior(base, photos)
    frozen_text = not any(p.requires_grad for p in text_encoder.parameters())
    graphs = Graphs(base.device, on=frozen_text)  # a text encoder synchronises with the host in every pass
    optimiser = torch.optim.AdamW(trainable, lr=settings.lr, weight_decay=1e-2, capturable=graphs.on)
    with torch.no_grad():
        fixed_prompt = embed(base, text_encoder, settings.prompt)

    def step(z: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor]:
        alpha = alphas[t].view(-1, 1, 1, 1)
        with torch.autocast(base.device.type, torch.bfloat16, enabled=base.device.type == "cuda"):
            prompt = fixed_prompt if frozen_text else embed(base, text_encoder, settings.prompt)
            noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
            predicted = unet(noisy, t, prompt.expand(len(z), -1, -1)).sample
        target = noise
        if pipe.scheduler.config.prediction_type == "v_prediction":
            target = alpha.sqrt() * noise - (1 - alpha).sqrt() * z
        loss = functional.mse_loss(predicted.float(), target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()
        return (loss.detach(),)

    train_step = graphs.captured(step)
    order: list[int] = []
    for _ in range(settings.steps):
        while len(order) < settings.batch:
            order += torch.randperm(len(photos), generator=generator).tolist()
        rows, order = order[: settings.batch], order[settings.batch :]
        mean, std = (part[rows] for part in posterior)
        z = (mean + std * _normal(mean, generator)) * pipe.vae.config.scaling_factor
        t = torch.randint(0, len(alphas), (len(z),), generator=generator).to(base.device)
        train_step(z, t, _normal(z, generator))
        after_step()


def sampling_pipeline(base: Base, unet: Any, text_encoder: Any) -> Any:
    """Return a text-to-image pipeline of this UNet, this text encoder and the base's other parts, with DPM-Solver++."""
    pipe = base.pipe
    sampler = StableDiffusionPipeline(
        vae=pipe.vae,
        text_encoder=text_encoder,
        tokenizer=pipe.tokenizer,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler.from_config(pipe.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    sampler.set_progress_bar_config(disable=True)
    return sampler


def sample(
    sampler: Any, settings: AttackSettings, prompt: str, numbers: Sequence[int], seed: int, **extra: Any
) -> list[Pixels]:
    """Generate the images with these numbers. An image's noise depends on `seed` and its number only.

    `extra` are further arguments of the pipeline `sampler`.
    """
    images: list[Pixels] = []
    for start in range(0, len(numbers), SAMPLING_BATCH):
        rows = numbers[start : start + SAMPLING_BATCH]
        with torch.no_grad():
            batch = sampler(
                [prompt] * len(rows),
                num_inference_steps=settings.sampling_steps,
                guidance_scale=settings.guidance,
                generator=[Generator().manual_seed(seed * 1_000_003 + i) for i in rows],
                output_type="np",
                **extra,
            ).images
        images += [np.asarray((image * 255).round(), np.uint8) for image in batch]
    return images


def _posterior(base: Base, photos: Sequence[Pixels]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the photos' latents, `b c h w` each, before the scaling factor."""
    x = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(base.device)
    with torch.no_grad():
        latents = [base.pipe.vae.encode(part).latent_dist for part in torch.split(x, 4)]
    return torch.cat([part.mean for part in latents]), torch.cat([part.std for part in latents])


def _alphas(pipe: Any) -> Tensor:
    from diffusers import DDPMScheduler

    alphas: Tensor = DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod
    return alphas


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)
