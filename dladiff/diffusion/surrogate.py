"""The Stable Diffusion surrogate: loading, latents, noising and the denoising loss."""

import copy
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Generator, Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dladiff.core.pixels import Images
from dladiff.diffusion.architecture import map_sides, read_architecture
from dladiff.diffusion.attention import MapReader
from dladiff.diffusion.base_model import BaseModel, Batch, Noise, Posterior, Prior, recompute
from dladiff.diffusion.bundle import verified_pins
from dladiff.diffusion.catalogue import EMBEDDED, locate
from dladiff.diffusion.complete import model_faults
from dladiff.diffusion.low_rank import LowRank, low_rank_pair
from dladiff.diffusion.text import Prompt, TextEncoder, embed
from dladiff.errors import ModelError

__all__ = ["EMBEDDED", "Batch", "Noise", "Posterior", "Prior", "Prompt", "Surrogate"]


class Surrogate(BaseModel):
    """Frozen text encoders, VAE and noise schedule, and the pretrained UNet that surrogates are copied from.

    The pretrained UNet and the text encoders run rarely and stay in the host's memory.
    """

    def __init__(self, model: str | Path, device: torch.device) -> None:
        """Load a model; `model` as in `locate`: `embedded`, a folder, a profile's name or a hub id.

        Raises ModelError: missing, damaged, incomplete, or of an unsupported architecture.
        """
        root = locate(str(model))
        architecture = read_architecture(root)
        if architecture.family:
            raise ModelError(f"the model in {root} is a transformer, and a U-Net is needed here; name another model")
        if faults := model_faults(root):
            raise ModelError(f"the model in {root} is incomplete: {'; '.join(faults.values())}; fetch it again")
        pins = verified_pins(root)
        self.device = device
        self.use_bf16 = self.use_cuda_graphs = device.type == "cuda"
        try:
            self.unet: UNet2DConditionModel = _part(UNet2DConditionModel, root, "unet")
            self.vae = _part(AutoencoderKL, root, "vae").to(device)
            self.encoders = [_text_encoder(CLIPTextModel, root, "")]
            if architecture.text_encoders == 2:
                self.encoders.append(_text_encoder(CLIPTextModelWithProjection, root, "_2"))
            scheduler = DDPMScheduler.from_pretrained(root, subfolder="scheduler", local_files_only=True)
        except ModelError:
            raise
        except Exception as error:  # diffusers, safetensors and tokenizers raise their own classes for damaged files
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"the model in {root} cannot be loaded: {why}") from error
        if self.use_bf16:
            self.vae.bfloat16()  # never trained, so no fp32 master weights; fp32 norms between bf16 layers are slow
        self.vae.to(memory_format=torch.channels_last)  # forward passes are 20 to 50 % faster; the UNet gains nothing
        self.trainable: UNet2DConditionModel | None = None
        self.frozen_copy: UNet2DConditionModel | None = None
        self.low_rank: tuple[LowRank, LowRank] | None = None
        self.prompts: dict[str, Prompt] = {}
        self.sizes: dict[int, Tensor] = {}  # SDXL's size conditioning, by the photo's side
        self.prior: Prior | None = None
        self.alphas = scheduler.alphas_cumprod.to(device)
        self.prediction = architecture.prediction
        if architecture.text_encoders == 2:
            self.card_fault = "SDXL's weights, gradients and moments alone take 41 GB"
        self.name = "tiny" if root == EMBEDDED else pins.source or root.name
        self.sha256, self.licence = pins.digest(), pins.licence or "see the model card"
        self.source, self.revision = pins.source, pins.revision

    def fresh_network(self, rank: int = 0) -> UNet2DConditionModel:
        """Return the trainable UNet with the pretrained fp32 weights, gradients disabled.

        There is one such UNet: every call returns the same object and resets its weights. With `rank`, only low-rank
        matrices of it are trainable.
        """
        if rank:
            if self.low_rank is None:
                self.low_rank = low_rank_pair(self.unet, self.device, rank, self.use_bf16)
            trainable, _ = self.low_rank
            trainable.zero_grad()
            return trainable.reset()
        if self.trainable is None:
            self.trainable = copy.deepcopy(self.unet).to(self.device)
        unet = self.trainable
        unet.load_state_dict(self.unet.state_dict())
        unet.requires_grad_(False).zero_grad()  # a training step that failed half-way may have left gradients
        return unet

    def freeze(self, unet: UNet2DConditionModel) -> UNet2DConditionModel:
        """Return the frozen copy with the current weights of `unet`; every call returns the same object.

        Convolutions and linear layers are stored in bf16 if autocast would convert them at every call.
        """
        if isinstance(unet, LowRank):
            assert self.low_rank is not None
            return self.low_rank[1].to(self.device).copied(list(unet.matrices))
        if self.frozen_copy is None:
            self.frozen_copy = copy.deepcopy(self.unet).to(self.device)
            if self.use_bf16:
                for module in self.frozen_copy.modules():
                    if isinstance(module, nn.Conv2d | nn.Linear):
                        module.to(torch.bfloat16)
        self.frozen_copy.to(self.device).load_state_dict(unet.state_dict())
        return self.frozen_copy

    def prompt(self, text: str) -> Prompt:
        """Return a prompt's conditioning, encoded at the first call and cached."""
        if text not in self.prompts:
            with torch.no_grad():
                self.prompts[text] = embed(self.encoders, text).to(self.device)
        return self.prompts[text]

    @property
    def factor(self) -> int:
        """Side of a latent cell in pixels."""
        levels: int = len(self.vae.config.block_out_channels)
        return 1 << (levels - 1)

    def map_sides(self, resolution: int) -> list[int]:
        """Return the sides of the UNet's attention maps at this working resolution, largest first."""
        return map_sides(dict(self.unet.config), resolution // self.factor)

    def map_reader(self, side: int) -> MapReader:
        """Return a reader of the attention maps of `side` x `side` cells."""
        return MapReader(side)

    def draw(self, generators: list[Generator], resolution: int) -> Noise:
        """Return t in 1..T-1 and noise, drawn from one stream for each image: draws do not depend on other images."""
        side = resolution // self.factor
        shape = (self.vae.config.latent_channels, side, side)
        t = torch.cat([torch.randint(1, len(self.alphas), (1,), generator=g) for g in generators])
        latent = torch.stack([torch.randn(shape, generator=g) for g in generators])
        posterior = torch.stack([torch.randn(shape, generator=g) for g in generators])
        return Noise(t.to(self.device), latent.to(self.device), posterior.to(self.device))

    def encode(self, images: Images) -> Posterior:
        """Return the posterior of [0, 1] images. A bf16 VAE computes entirely in bf16, norms included."""
        inputs, bf16_vae = images * 2 - 1, self.vae.dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bf16 and not bf16_vae):
            posterior = self.vae.encode(inputs.to(self.vae.dtype) if bf16_vae else inputs).latent_dist
        return Posterior(posterior.mean.to(images.dtype), posterior.std.to(images.dtype))

    def latents(self, posterior: Posterior, noise: Noise) -> Tensor:
        """Return scaled latents `b c h w`, sampled from the posterior with the given noise."""
        latents: Tensor = (posterior.mean + posterior.std * noise.posterior) * self.vae.config.scaling_factor
        return latents

    def predict(self, unet: UNet2DConditionModel, latents: Tensor, noise: Noise, prompt: Prompt) -> Tensor:
        """Return the UNet's prediction for the noised latents z_t = sqrt(a_t) z + sqrt(1 - a_t) e."""
        signal, spread = self._scales(noise.t, latents)
        noisy = signal * latents + spread * noise.latent
        text = prompt.embedding.expand(len(latents), -1, -1)
        if prompt.pooled is None:
            out: Tensor = unet(noisy, noise.t, text).sample
            return out
        side = latents.shape[-1] * self.factor  # SDXL: original size, crop corner, target size
        if side not in self.sizes:
            self.sizes[side] = latents.new_tensor([[side, side, 0, 0, side, side]])
        sizes = self.sizes[side].to(latents.dtype).expand(len(latents), -1)
        added = {"text_embeds": prompt.pooled.expand(len(latents), -1), "time_ids": sizes}
        out = unet(noisy, noise.t, text, added_cond_kwargs=added).sample
        return out

    def loss(self, unet: UNet2DConditionModel, latents: Tensor, noise: Noise, prompt: Prompt) -> Tensor:
        """Return L_cond (Eq. 3): mean squared error against the noise, or against v for v-prediction models."""
        predicted = self.predict(unet, latents, noise, prompt)
        target = noise.latent
        if self.prediction == "v_prediction":
            signal, spread = self._scales(noise.t, latents)
            target = signal * noise.latent - spread * latents
        return functional.mse_loss(predicted.float(), target.float())

    def recompute_vae(self, on: bool) -> None:
        """Switch gradient checkpointing of the VAE on or off."""
        recompute(self.vae, on)

    def _scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas[t].to(like.dtype).view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()


def _part(kind: Any, root: Path, name: str) -> Any:
    """Return one network, frozen, in fp32. Raises ModelError if the file lacks a tensor or has another shape."""
    network, report = kind.from_pretrained(
        root, subfolder=name, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if lacking := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ModelError(f"{name} in {root} lacks {len(lacking)} tensors of its configuration; fetch the model again")
    return network.eval().requires_grad_(False).float()


def _text_encoder(kind: Any, root: Path, ending: str) -> TextEncoder:
    tokenizer = CLIPTokenizer.from_pretrained(root, subfolder=f"tokenizer{ending}", local_files_only=True)
    return TextEncoder(tokenizer, _part(kind, root, f"text_encoder{ending}"))
