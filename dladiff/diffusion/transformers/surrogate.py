"""Transformers as surrogates: loading, latents, flow matching, maps of joint attention, low-rank matrices."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Generator, Tensor

from dladiff.core.pixels import Images
from dladiff.diffusion.architecture import read_architecture
from dladiff.diffusion.attention import Maps
from dladiff.diffusion.base_model import BaseModel, Noise, Posterior, ReadMaps
from dladiff.diffusion.bundle import verified_pins
from dladiff.diffusion.complete import model_faults
from dladiff.diffusion.low_rank import LowRank, low_rank_sets
from dladiff.diffusion.model_json import read_object
from dladiff.diffusion.text import Prompt
from dladiff.diffusion.transformer_architecture import NO_FULL
from dladiff.diffusion.transformer_layouts import LAYOUTS, Layout
from dladiff.diffusion.transformers.families import FAMILIES
from dladiff.diffusion.transformers.flow_matching import Times, flow_loss, noised
from dladiff.diffusion.transformers.joint_attention import Recorder
from dladiff.diffusion.transformers.text import Texts
from dladiff.diffusion.vae import BaseVae, compare
from dladiff.errors import ModelError


class FlowSurrogate(BaseModel):
    """A frozen transformer with two sets of low-rank matrices, its VAE, and its prompts.

    On a GPU the network is stored in bf16, the matrices in fp32. Text encoders are loaded for a prompt and freed.
    """

    def __init__(self, root: Path, device: torch.device) -> None:
        """Load a model's folder. Raises ModelError: damaged, incomplete, or of an unsupported architecture."""
        architecture = read_architecture(root)
        if architecture.family not in LAYOUTS:
            raise ModelError(f"the model in {root} is a U-Net, and a transformer is needed here; name another model")
        if faults := model_faults(root):
            raise ModelError(f"the model in {root} is incomplete: {'; '.join(faults.values())}; fetch it again")
        pins, layout = verified_pins(root), LAYOUTS[architecture.family]
        self.root, self.layout, self.family = root, layout, FAMILIES[layout.family]
        self.device = device
        self.use_bf16, self.use_cuda_graphs = device.type == "cuda", False  # kernels of this size hide their launch
        self.network = _transformer(root, layout, self.dtype).to(device)
        self.recorder = Recorder()
        self.family.install(self.network, self.recorder)
        self.vae = BaseVae(str(root), device)
        scheduler = read_object(root / "scheduler" / "scheduler_config.json")
        shift = 1.0 if scheduler.get("use_dynamic_shifting") else float(scheduler.get("shift", 1.0))
        self.times = Times(int(scheduler["num_train_timesteps"]), shift, self.family.logit_normal)
        self.low_rank: tuple[LowRank, LowRank] | None = None
        self.prompts: dict[str, Prompt] = {}
        self.name = pins.source or root.name
        self.sha256, self.licence = pins.digest(), pins.licence or "see the model card"
        self.source, self.revision = pins.source, pins.revision

    @property
    def dtype(self) -> torch.dtype:
        """Type of the frozen networks."""
        return torch.bfloat16 if self.use_bf16 else torch.float32

    def fresh_network(self, rank: int = 0) -> LowRank:
        """Return the trainable set of low-rank matrices with its first values. Raises ModelError for rank 0."""
        if not rank:
            raise ModelError(NO_FULL)
        if self.low_rank is None:
            self.low_rank = low_rank_sets(self.network, rank, self.family.low_rank_layers(self.network))
        trainable, _ = self.low_rank
        trainable.zero_grad()
        return trainable.reset()

    def freeze(self, network: LowRank) -> LowRank:
        """Return the frozen set with the current values of the trainable one."""
        assert self.low_rank is not None
        return self.low_rank[1].to(self.device).copied(list(network.matrices))

    def prompt(self, text: str) -> Prompt:
        """Return a prompt's conditioning in fp32, encoded at the first call and cached."""
        if text not in self.prompts:
            texts = Texts(self.root, self.device, self.dtype)
            try:
                with torch.no_grad():
                    found = self.family.prompt(texts, text)
            except ModelError:
                raise
            except Exception as error:  # transformers, safetensors and tokenizers raise their own classes
                why = (str(error).splitlines() or [type(error).__name__])[0]
                raise ModelError(f"the text encoders in {self.root} cannot be loaded: {why}") from error
            pooled = None if found.pooled is None else found.pooled.float()
            self.prompts[text] = Prompt(found.embedding.float(), found.instance, pooled)
        return self.prompts[text]

    @property
    def factor(self) -> int:
        """Side of a latent cell in pixels."""
        return self.vae.factor

    def map_sides(self, resolution: int) -> list[int]:
        """Return the side of the attention maps at this working resolution: all layers have the same."""
        return [resolution // self.layout.cell]

    def map_reader(self, side: int) -> ReadMaps:
        """Return a reader of the attention maps; all have the same side. `side` is checked at loading."""

        def read(network: Any, forward: Any) -> Maps:
            return self.recorder.maps(forward)

        return read

    def draw(self, generators: list[Generator], resolution: int) -> Noise:
        """Return times and noise, drawn from one stream for each image: draws do not depend on other images."""
        side = resolution // self.factor
        shape = (self.vae.channels, side, side)
        t = torch.tensor([self.times.draw(g) for g in generators])
        latent = torch.stack([torch.randn(shape, generator=g) for g in generators])
        posterior = torch.stack([torch.randn(shape, generator=g) for g in generators])
        return Noise(t.to(self.device), latent.to(self.device), posterior.to(self.device))

    def encode(self, images: Images) -> Posterior:
        """Return the posterior of [0, 1] images, normalised as the transformer takes latents."""
        found = self.vae.encode(images)
        assert found.log_variance is not None  # the layouts' VAEs have posteriors
        std = torch.zeros_like(found.mean) if self.family.mean_latents else (found.log_variance / 2).exp()
        return Posterior(found.mean, std)

    def latents(self, posterior: Posterior, noise: Noise) -> Tensor:
        """Return latents `b c h w`, sampled from the posterior with the given noise."""
        return posterior.mean + posterior.std * noise.posterior

    def predict(self, network: Any, latents: Tensor, noise: Noise, prompt: Prompt) -> Tensor:
        """Return the predicted velocity for the noised latents z_t = (1 - t) z + t e."""
        count = len(latents)
        pooled = None if prompt.pooled is None else prompt.pooled.expand(count, -1)
        rows = Prompt(prompt.embedding.expand(count, -1, -1), prompt.instance, pooled)
        self.recorder.text = rows.embedding.shape[1]
        return self.family.velocity(network, noised(latents, noise.latent, noise.t), noise.t, rows)

    def loss(self, network: Any, latents: Tensor, noise: Noise, prompt: Prompt) -> Tensor:
        """Return the flow-matching loss, which is L_cond (Eq. 3) of these models."""
        return flow_loss(self.predict(network, latents, noise, prompt), latents, noise.latent)

    def recompute_vae(self, on: bool) -> None:
        """Switch gradient checkpointing of the VAE on or off, where it has it."""
        self.vae.recompute(on)


def _transformer(root: Path, layout: Layout, dtype: torch.dtype) -> Any:
    """Return the network, frozen. Raises ModelError if its weights are not those of its configuration."""
    kind, folder = getattr(diffusers, layout.transformer), root / "transformer"
    try:
        compare(kind, folder, "transformer/")
        network, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, torch_dtype=dtype
        )
    except ModelError:
        raise
    except Exception as error:  # diffusers and safetensors raise their own classes for damaged files
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the model in {root} cannot be loaded: {why}") from error
    if lacking := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ModelError(f"transformer in {root} lacks {len(lacking)} tensors; fetch the model again")
    return network.eval().requires_grad_(False)
