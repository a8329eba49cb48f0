"""What every attack shares: the thief's base model, its settings, the denoising loss and sampling."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Generator, Tensor, nn
from torch.nn import functional

from dladiff.core.pixels import Pixels
from dladiff.diffusion.architecture import foreign_part
from dladiff.diffusion.graphs import Graphs
from dladiff.diffusion.model_json import read_object
from dladiff.errors import ModelError
from dladiff.settings.validate import Settings

TINY = Path(__file__).parents[2] / "profiles" / "tiny"
"""The tiny bundle, its encoders and its adapters, which ship with the package."""
SAMPLED_AT_ONCE = 8


@dataclass(frozen=True)
class Base:
    """A base model that the thief customizes; an attack works on copies and leaves it as it is."""

    pipe: Any
    """StableDiffusionPipeline or StableDiffusionXLPipeline, fp32, without a safety checker."""
    resolution: int
    """Side in px of the photos that it is trained on."""
    region: str
    """What the thief cuts from a photo: `face` (the square around it) or `photo`."""
    name: str
    device: torch.device

    @property
    def sdxl(self) -> bool:
        """Tell whether this is SDXL, with two text encoders."""
        return isinstance(self.pipe, StableDiffusionXLPipeline)


class AttackSettings(Settings):
    """Settings of one attack; those that it does not know it leaves alone."""

    prompt: str = "a photo of sks person"
    """Prompt of every training step."""
    initializer: str = "person"
    """Textual Inversion: the word whose embedding `sks` starts from."""
    steps: int = 0
    lr: float = 0.0
    """Of AdamW, constant."""
    batch: int = 1
    rank: int = 4
    """LoRA: rank, and alpha."""
    sampling_steps: int = 20
    """Of DPM-Solver++."""
    guidance: float = 7.5
    """Classifier-free guidance."""
    adapter: str = ""
    """Zero-shot: weights file in the layout of IP-Adapter FaceID or InstantID, or a folder that holds one."""
    encoder: str = ""
    """Zero-shot: ONNX file of the recogniser that the adapter listens to."""
    scale: float = 1.0
    """Zero-shot: weight of the image tokens."""
    control: str = ""
    """InstantID: folder of IdentityNet, its ControlNet, in the diffusers layout."""
    control_scale: float = 0.8
    """InstantID: weight of IdentityNet."""


Attack = Callable[[Base, Sequence[Pixels], AttackSettings, Sequence[str], int, int], dict[str, list[Pixels]]]
"""(base, training photos r x r x 3, settings, prompts, images a prompt, seed) to the images of each prompt."""


def load_base(folder: str | Path, device: torch.device | str = "cpu") -> Base:
    """Load a Stable Diffusion or SDXL folder in the diffusers layout, or `embedded`. Raises ModelError.

    `region` is `face` for a model that knows nothing but face crops: the embedded tiny bundle, and one whose
    model_index.json says `"_region": "face"` (dladiff.training.base). It is `photo` for any other.
    """
    tiny = str(folder) == "embedded"
    root = TINY / "bundle" if tiny else Path(folder)
    if not (root / "model_index.json").is_file():
        raise ModelError(f"no diffusers model in {root}: expected model_index.json; name the folder of a base model")
    try:
        without: dict[str, Any]
        index = read_object(root / "model_index.json")
        if foreign := foreign_part(index):
            raise ModelError(f"the base model in {root} names code of its own for {foreign}, which is never run")
        if index.get("_class_name") == "StableDiffusionXLPipeline":
            kind, without = StableDiffusionXLPipeline, {}
        else:
            kind, without = StableDiffusionPipeline, {"safety_checker": None}
        pipe = kind.from_pretrained(root, **without, local_files_only=True, use_safetensors=True)
    except ModelError:
        raise
    except Exception as error:  # diffusers, safetensors and tokenizers raise classes of their own for damage
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the base model in {root} cannot be loaded: {why}") from error
    device = torch.device(device)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False).float().to(device)
    resolution = pipe.unet.config.sample_size * pipe.vae_scale_factor
    region = "face" if tiny or index.get("_region") == "face" else "photo"
    return Base(pipe, resolution, region, "tiny" if tiny else root.name, device)


def embed(base: Base, text_encoder: Any, prompt: str) -> Tensor:
    """Return the embedding `1 n d` of a prompt; the gradient reaches the text encoder where one is asked for."""
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
    after: Callable[[], None] = lambda: None,
) -> None:
    """Train `parameters` (of `unet` or `text_encoder`) on the photos by the denoising loss of DreamBooth.

    Ruiz et al. 2023 without the prior term; Gal et al. 2023 and Hu et al. 2022 minimise the same loss over other
    weights. `after` runs after each step.
    """
    learning = list(parameters)
    for parameter in learning:
        parameter.requires_grad_(True)
    draws, pipe = Generator().manual_seed(seed), base.pipe
    alphas = _alphas(pipe).to(base.device)
    posterior = _posterior(base, photos)
    frozen_text = not any(p.requires_grad for p in text_encoder.parameters())
    graphs = Graphs(base.device, on=frozen_text)  # a text encoder asks the host in every pass
    optimiser = torch.optim.AdamW(learning, lr=settings.lr, weight_decay=1e-2, capturable=graphs.on)
    with torch.no_grad():
        fixed = embed(base, text_encoder, settings.prompt)

    def step(z: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor]:
        alpha = alphas[t].view(-1, 1, 1, 1)
        with torch.autocast(base.device.type, torch.bfloat16, enabled=base.device.type == "cuda"):
            prompt = fixed if frozen_text else embed(base, text_encoder, settings.prompt)
            noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
            predicted = unet(noisy, t, prompt.expand(len(z), -1, -1)).sample
        target = noise
        if pipe.scheduler.config.prediction_type == "v_prediction":
            target = alpha.sqrt() * noise - (1 - alpha).sqrt() * z
        loss = functional.mse_loss(predicted.float(), target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        return (loss.detach(),)

    learn = graphs.captured(step)
    order: list[int] = []
    for _ in range(settings.steps):
        while len(order) < settings.batch:
            order += torch.randperm(len(photos), generator=draws).tolist()
        rows, order = order[: settings.batch], order[settings.batch :]
        mean, std = (part[rows] for part in posterior)
        z = (mean + std * _normal(mean, draws)) * pipe.vae.config.scaling_factor
        t = torch.randint(0, len(alphas), (len(z),), generator=draws).to(base.device)
        learn(z, t, _normal(z, draws))
        after()


def with_parts(base: Base, unet: Any, text_encoder: Any) -> Any:
    """Return a pipeline of these two over the base's other parts, that samples with DPM-Solver++."""
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
    sampler: Any, settings: AttackSettings, prompt: str, numbers: Sequence[int], seed: int, **shown: Any
) -> list[Pixels]:
    """Generate the images of these numbers, each from noise of its own: more images never change the first ones.

    `shown` is what else the sampler takes.
    """
    images: list[Pixels] = []
    for start in range(0, len(numbers), SAMPLED_AT_ONCE):
        rows = numbers[start : start + SAMPLED_AT_ONCE]
        with torch.no_grad():
            found = sampler(
                [prompt] * len(rows),
                num_inference_steps=settings.sampling_steps,
                guidance_scale=settings.guidance,
                generator=[Generator().manual_seed(seed * 1_000_003 + i) for i in rows],
                output_type="np",
                **shown,
            ).images
        images += [np.asarray((image * 255).round(), np.uint8) for image in found]
    return images


def copied(part: Any) -> Any:
    """Return a copy of a network that training may change."""
    return copy.deepcopy(part)


def _posterior(base: Base, photos: Sequence[Pixels]) -> tuple[Tensor, Tensor]:
    """Encode photos once: mean and standard deviation of their unscaled latents."""
    x = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(base.device)
    with torch.no_grad():
        found = [base.pipe.vae.encode(part).latent_dist for part in torch.split(x, 4)]
    return torch.cat([f.mean for f in found]), torch.cat([f.std for f in found])


def _alphas(pipe: Any) -> Tensor:
    from diffusers import DDPMScheduler

    alphas: Tensor = DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod
    return alphas


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)
