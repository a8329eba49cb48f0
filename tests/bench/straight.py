"""Layer 1 written straight down, as research code runs it: what the method's speed and results are compared with.

The models are loaded for each identity, the weights of the UNet take gradients throughout, every pass runs the whole
UNet, attention steps hold the maps of every layer, and each step encodes its photos and its prompt.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Generator, Tensor

from dladiff.diffusion.surrogate import Noise, Prompt, Surrogate
from dladiff.diffusion.text import embed
from dladiff.settings.schema import FinetuningConfig


class Straight:
    """One identity's models, freshly loaded, and layer 1 on them; attention over the tokens of the whole prompt."""

    def __init__(self, folder: str | Path, device: torch.device, config: FinetuningConfig) -> None:
        self.models = Surrogate(folder, device)
        self.config = config
        self.models.vae.float().to(memory_format=torch.contiguous_format)
        self.static = UNet2DConditionModel.from_config(self.models.unet.config).to(device)
        self.static.load_state_dict(self.models.unet.state_dict())
        self.dynamic = self.models.unet.to(device).requires_grad_(True)

    def protect(self, clean: Tensor, x: Tensor, generator: Generator, generators: list[Generator]) -> Tensor:
        """Algorithm 1 for the clean set `m 3 r r` and one batch `b 3 r r`: its perturbation."""
        self.fine_tune(clean, generator)
        return self.perturb(x, generators)

    def fine_tune(self, clean: Tensor, generator: Generator) -> None:
        """Algorithm 1, lines 1-9."""
        config, optimiser = self.config, self.optimiser(self.static.requires_grad_(True), self.config.lr_static)
        size = min(config.batch, len(clean))
        order: list[int] = []
        for _ in range(config.iter_ft):
            if len(order) < size:
                order += torch.randperm(len(clean), generator=generator).tolist()
            batch, order = clean[order[:size]], order[size:]
            self.train(self.static, optimiser, batch, self.models.draw([generator] * size, clean.shape[-1]))

    def perturb(self, x: Tensor, generators: list[Generator]) -> Tensor:
        """Algorithm 1, lines 10-41."""
        config, optimiser = self.config, self.optimiser(self.dynamic, self.config.lr_dynamic)
        delta = torch.zeros_like(x)
        for _ in range(config.iter_opt):
            for step in range(config.iter_1 + config.iter_2):
                point = (x + delta).requires_grad_(True)
                noise = self.models.draw(generators, x.shape[-1])
                with self.models.autocast():
                    if step < config.iter_1:
                        with torch.no_grad():
                            want = self.maps(self.static, x, noise)
                        loss = self.distance(want, self.maps(self.dynamic, point, noise))
                    else:
                        loss = self.denoising(self.dynamic, point, noise)
                loss.backward()
                self.dynamic.zero_grad()
                gradient = point.grad
                assert gradient is not None
                delta = (delta + config.step_size * gradient.sign()).clamp(-config.eta, config.eta)
                delta = (x + delta).clamp(0, 1) - x
            for _ in range(config.iter_3):
                self.train(self.dynamic, optimiser, x + delta, self.models.draw(generators, x.shape[-1]))
        return delta

    def optimiser(self, unet: UNet2DConditionModel, lr: float) -> torch.optim.AdamW:
        return torch.optim.AdamW(unet.parameters(), lr=lr, weight_decay=self.config.weight_decay)

    def train(self, unet: UNet2DConditionModel, optimiser: torch.optim.AdamW, images: Tensor, noise: Noise) -> None:
        with self.models.autocast():
            self.denoising(unet, images, noise).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    def denoising(self, unet: UNet2DConditionModel, images: Tensor, noise: Noise) -> Tensor:
        latents = self.models.latents(self.models.encode(images), noise)
        return self.models.loss(unet, latents, noise, self.prompt())

    def maps(self, unet: UNet2DConditionModel, images: Tensor, noise: Noise) -> "Store":
        latents = self.models.latents(self.models.encode(images), noise)
        store, before = Store(), unet.attn_processors
        unet.set_attn_processor(store)
        self.models.predict(unet, latents, noise, self.prompt())
        unet.set_attn_processor(before)
        return store

    def distance(self, want: "Store", have: "Store") -> Tensor:
        cells = self.config.attention_resolution**2
        kinds: dict[bool, list[Tensor]] = {False: [], True: []}
        for (cross, p), (_, q) in zip(want.maps, have.maps, strict=True):
            if p.shape[2] == cells:
                kinds[cross].append((p.mean(1) - q.mean(1)).float().square().mean())
        return torch.stack(kinds[True]).mean() + self.config.self_weight * torch.stack(kinds[False]).mean()

    def prompt(self) -> Prompt:
        with torch.no_grad():
            return embed(self.models.encoders, self.config.prompt).to(self.models.device)


class Store:
    """An attention processor that keeps the map `b heads n m` of every layer, in layer order."""

    def __init__(self) -> None:
        self.maps: list[tuple[bool, Tensor]] = []

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        projected = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        query, key, value = (attn.head_to_batch_dim(t) for t in projected)
        weights = attn.get_attention_scores(query, key)
        self.maps.append((encoder_hidden_states is not None, weights.unflatten(0, (-1, attn.heads))))
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(weights @ value)))
