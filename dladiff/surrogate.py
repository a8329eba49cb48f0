"""The Stable Diffusion bundle: loading, latents, noising, the denoising loss, and its training steps."""

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Generator, Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from dladiff.errors import ModelError
from dladiff.pixels import Images

EMBEDDED = Path(__file__).parent / "profiles" / "tiny" / "bundle"
"""The tiny face model that ships with the package."""


@dataclass(frozen=True)
class Noise:
    """What one forward diffusion draws: timesteps `b`, latent noise and posterior noise `b c h w`."""

    t: Tensor
    latent: Tensor
    posterior: Tensor


@dataclass(frozen=True)
class Posterior:
    """What the VAE says of images: mean and standard deviation of their unscaled latents, `b c h w`."""

    mean: Tensor
    std: Tensor

    def pick(self, rows: list[int]) -> "Posterior":
        """Return these images' rows."""
        return Posterior(self.mean[rows], self.std[rows])


@dataclass(frozen=True)
class Batch:
    """What one training step denoises: scaled latents `b c h w`, their noise, the prompt's embedding `1 n d`."""

    latents: Tensor
    noise: Noise
    prompt: Tensor


@dataclass(frozen=True)
class Prior:
    """Class images that keep a surrogate's idea of a person (the second term of L_db), encoded once for all."""

    posterior: Posterior
    prompt: Tensor


class Surrogate:
    """A frozen text encoder, VAE and noise schedule, with the pretrained UNet that surrogates are copied from."""

    def __init__(self, folder: str | Path, device: torch.device) -> None:
        """Load from a folder in the diffusers layout; ModelError says what is missing."""
        root = EMBEDDED if str(folder) == "embedded" else Path(folder)
        if not (root / "model_index.json").is_file():
            raise ModelError(
                f"no diffusers model in {root}: expected model_index.json; download a bundle and name its folder"
            )
        settings = {"local_files_only": True, "use_safetensors": True}
        try:
            self.unet = UNet2DConditionModel.from_pretrained(root, subfolder="unet", **settings)
            self.vae = AutoencoderKL.from_pretrained(root, subfolder="vae", **settings)
            text = CLIPTextModel.from_pretrained(root, subfolder="text_encoder", **settings)
            self.tokenizer = CLIPTokenizer.from_pretrained(root, subfolder="tokenizer", local_files_only=True)
            scheduler = DDPMScheduler.from_pretrained(root, subfolder="scheduler", local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"the model in {root} cannot be loaded: {str(error).splitlines()[0]}") from error
        self.device = device
        for part in (self.unet, self.vae, text):
            part.eval().requires_grad_(False).float().to(device)
        self.vae.to(memory_format=torch.channels_last)  # forwards a fifth to a half faster; the UNet gains nothing
        self.text = text
        self.copies: dict[str, UNet2DConditionModel] = {}
        self.prompts: dict[str, tuple[Tensor, int | None]] = {}
        self.prior: Prior | None = None
        self.alphas = scheduler.alphas_cumprod.to(device)
        self.prediction: str = scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ModelError(f"the model in {root} predicts {self.prediction}; epsilon and v_prediction are known")
        self.name, self.sha256 = root.name if str(folder) != "embedded" else "tiny", _digest(root)

    def fresh_unet(self, role: str) -> UNet2DConditionModel:
        """Return the UNet of this role with the pretrained fp32 weights, frozen.

        Each role has one resident copy that is reset in place, so what was fetched before is the same object.
        """
        if role not in self.copies:
            self.copies[role] = copy.deepcopy(self.unet)
        unet = self.copies[role]
        unet.load_state_dict(self.unet.state_dict())
        unet.requires_grad_(False).zero_grad()  # a training step that failed half-way may have left gradients
        return unet

    def prompt(self, text: str) -> tuple[Tensor, int | None]:
        """Return the embedding `1 n d` of a prompt and the position of `sks` in it (None where absent)."""
        if text not in self.prompts:
            self.prompts[text] = self._embed(text)
        return self.prompts[text]

    def draw(self, generators: list[Generator], resolution: int) -> Noise:
        """Draw t in 1..T-1 and noise, one stream per image, so that a photo's draws never depend on others."""
        side = resolution // 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (self.vae.config.latent_channels, side, side)
        t = torch.cat([torch.randint(1, len(self.alphas), (1,), generator=g) for g in generators])
        latent = torch.stack([torch.randn(shape, generator=g) for g in generators])
        posterior = torch.stack([torch.randn(shape, generator=g) for g in generators])
        return Noise(t.to(self.device), latent.to(self.device), posterior.to(self.device))

    def encode(self, images: Images) -> Posterior:
        """Encode [0, 1] images."""
        posterior = self.vae.encode(images * 2 - 1).latent_dist
        return Posterior(posterior.mean, posterior.std)

    def encode_fixed(self, images: Images, size: int) -> Posterior:
        """Encode [0, 1] images, `size` at a time, without a graph and to their own type."""
        with torch.no_grad(), self.autocast():
            parts = [self.encode(part) for part in torch.split(images, size)]
        mean, std = torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])
        return Posterior(mean.to(images.dtype), std.to(images.dtype))

    def latents(self, posterior: Posterior, noise: Noise) -> Tensor:
        """Sample scaled latents `b c h w` with the given noise."""
        latents: Tensor = (posterior.mean + posterior.std * noise.posterior) * self.vae.config.scaling_factor
        return latents

    def predict(self, unet: UNet2DConditionModel, latents: Tensor, noise: Noise, prompt: Tensor) -> Tensor:
        """Run the UNet on the noised latents: z_t = sqrt(a_t) z + sqrt(1 - a_t) e."""
        signal, spread = self._scales(noise.t, latents)
        noisy = signal * latents + spread * noise.latent
        out: Tensor = unet(noisy, noise.t, prompt.expand(len(latents), -1, -1)).sample
        return out

    def loss(self, unet: UNet2DConditionModel, latents: Tensor, noise: Noise, prompt: Tensor) -> Tensor:
        """L_cond (Eq. 3): mean squared error against the noise, or against v for v-prediction models."""
        predicted = self.predict(unet, latents, noise, prompt)
        target = noise.latent
        if self.prediction == "v_prediction":
            signal, spread = self._scales(noise.t, latents)
            target = signal * noise.latent - spread * latents
        return functional.mse_loss(predicted.float(), target.float())

    def set_prior(self, images: Images, prompt: str, batch: int) -> None:
        """Take class images (`m 3 r r`), shared by all identities of a job, for the dynamic surrogate's training."""
        self.prior = Prior(self.encode_fixed(images.to(self.device), batch), self.prompt(prompt)[0])

    def prior_batch(self, generators: list[Generator]) -> Batch | None:
        """Draw one class image and its noise from each stream; None without class images, and nothing is drawn."""
        if self.prior is None:
            return None
        count = len(self.prior.posterior.mean)
        rows = [int(torch.randint(count, (1,), generator=g)) for g in generators]
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        noise = self.draw(generators, self.prior.posterior.mean.shape[-1] * factor)
        return Batch(self.latents(self.prior.posterior.pick(rows), noise), noise, self.prior.prompt)

    def autocast(self) -> torch.autocast:
        """bf16 compute on CUDA over fp32 master weights, plain fp32 on the CPU (METHOD, "numeric type")."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def _embed(self, text: str) -> tuple[Tensor, int | None]:
        ids = self.tokenizer(
            [text],
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids
        pieces = self.tokenizer.convert_ids_to_tokens(ids[0].tolist())
        place = next((i for i, piece in enumerate(pieces) if piece.startswith("sks")), None)
        with torch.no_grad():
            embedding: Tensor = self.text(ids.to(self.device)).last_hidden_state
        return embedding, place

    def _scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas[t].to(like.dtype).view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()


def _digest(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.safetensors")) + sorted(root.rglob("*.json")):
        total.update(path.relative_to(root).as_posix().encode())
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
