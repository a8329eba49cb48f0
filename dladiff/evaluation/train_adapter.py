"""Train the tiny model's IP-Adapter FaceID: `python -m dladiff.evaluation.train_adapter --help`.

Decoupled cross-attention of IP-Adapter (Ye et al. 2023). The base model is frozen. Trainable are the projection of an
identity embedding to four tokens, and a key and a value matrix for these tokens in every cross-attention layer.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Generator, Tensor

from dladiff.diffusion.surrogate import Batch, Noise, Posterior, Surrogate
from dladiff.diffusion.text import Prompt
from dladiff.evaluation.attackers.adapter import adapter_weights
from dladiff.faces.encoder import IdentityEncoder
from dladiff.service import named_encoder
from dladiff.training.data import align, mirrored, training_crops

TOKENS = 4
"""Image tokens; diffusers' loader supports only this number for FaceID."""
WIDTH = 2
"""Hidden width of the projection, as a multiple of the embedding's."""
CAPTIONS = (
    "a photo of sks person",
    "a dslr portrait of sks person",
    "a photo of person",
    "a photo of a person",
    "a portrait of a person",
)
NO_TEXT, NO_FACE = 0.1, 0.1
"""Probabilities of dropping the caption and the embedding, for classifier-free guidance."""
OTHER_PHOTO = 0.5
"""Probability of the embedding of another photo of the person, so that the adapter learns identity and not pose."""
SAVE_S = 120
"""Seconds of processor time between saves."""


@dataclass(frozen=True)
class Pool:
    """The training crops: people who are not held out."""

    posterior: Posterior
    """Posteriors of the latents."""
    embeddings: Tensor
    """`n d`."""
    same: list[NDArray[np.int64]]
    """For each crop the indices of all crops of its person."""


def encode_pool(assets: Path, surrogate: Surrogate, encoder: IdentityEncoder, max_crops: int) -> Pool:
    """Encode at most `max_crops` crops, every second one mirrored."""
    crops, matrix = training_crops(assets, max_crops)
    means, stds, embeddings = [], [], []
    for pixels in mirrored(crops, 16):
        faces = np.stack([align(p, matrix) for p in pixels])
        with torch.no_grad():
            embeddings.append(encoder(torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 255))
        posterior = surrogate.encode_fixed(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, 16)
        means.append(posterior.mean.half())
        stds.append(posterior.std.half())
    people: dict[str, list[int]] = defaultdict(list)
    for i, crop in enumerate(crops):
        people[crop.person].append(i)
    same = [np.asarray(people[c.person]) for c in crops]
    return Pool(Posterior(torch.cat(means), torch.cat(stds)), torch.cat(embeddings), same)


def initial_adapter(unet: UNet2DConditionModel, dimensions: int, generator: Generator) -> dict[str, dict[str, Tensor]]:
    """Return an adapter with random weights in IP-Adapter's layout.

    The first layer's gain is sqrt(dimensions), because the entries of a unit vector are that much smaller than 1.
    """
    cross = unet.config.cross_attention_dim

    def matrix(out: int, into: int, gain: float = 1.0) -> Tensor:
        return torch.randn(out, into, generator=generator) * gain / math.sqrt(into)

    hidden = WIDTH * dimensions
    projection = {
        "proj.0.weight": matrix(hidden, dimensions, math.sqrt(dimensions)),
        "proj.0.bias": torch.zeros(hidden),
        "proj.2.weight": matrix(TOKENS * cross, hidden),
        "proj.2.bias": torch.zeros(TOKENS * cross),
        "norm.weight": torch.ones(cross),
        "norm.bias": torch.zeros(cross),
    }
    attention = {}
    for number, name in enumerate(unet.attn_processors):
        if ".attn2." in name:
            layer = unet.get_submodule(name.removesuffix(".processor"))
            attention[f"{number}.to_k_ip.weight"] = matrix(layer.to_k.out_features, cross)
            attention[f"{number}.to_v_ip.weight"] = matrix(layer.to_v.out_features, cross, 0.1)
    return {"image_proj": projection, "ip_adapter": attention}


def export_adapter(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Return the UNet's adapter weights, fp16, in the file layout of diffusers' `load_ip_adapter`."""
    out = {}
    names = {"ff.net.0.proj": "proj.0", "ff.net.2": "proj.2", "norm": "norm"}
    for key, value in unet.encoder_hid_proj.image_projection_layers[0].state_dict().items():
        module, kind = key.rsplit(".", 1)
        out[f"image_proj.{names[module]}.{kind}"] = value
    for number, (name, processor) in enumerate(unet.attn_processors.items()):
        if ".attn2." in name:
            out[f"ip_adapter.{number}.to_k_ip.weight"] = processor.to_k_ip[0].weight
            out[f"ip_adapter.{number}.to_v_ip.weight"] = processor.to_v_ip[0].weight
    return {key: value.detach().half().contiguous() for key, value in out.items()}


def skew_to_noisy(noise: Noise, last: int) -> Noise:
    """Map uniform timesteps 1..last to a density that grows with t, because identity is decided at high noise."""
    t = (noise.t / last).sqrt().mul(last).ceil().long()
    return Noise(t, noise.latent, noise.posterior)


class BatchSampler:
    """Draws random batches from a pool."""

    def __init__(self, pool: Pool, surrogate: Surrogate, size: int, seed: int) -> None:
        self.pool, self.surrogate, self.size = pool, surrogate, size
        self.rng, self.generator = np.random.default_rng(seed), Generator().manual_seed(seed)
        self.captions = torch.cat([surrogate.prompt(c).embedding for c in ("", *CAPTIONS)])

    def __call__(self) -> tuple[Batch, Tensor]:
        """Return a batch, with one prompt per photo, and its embeddings `b 1 d`."""
        rng, size = self.rng, self.size
        rows = rng.integers(0, len(self.pool.same), size)
        sources = [rng.choice(self.pool.same[i]) if rng.random() < OTHER_PHOTO else i for i in rows]
        faces = self.pool.embeddings[sources] * torch.from_numpy(rng.random((size, 1)) >= NO_FACE).float()
        caption = np.where(rng.random(size) < NO_TEXT, 0, rng.integers(1, len(self.captions), size))
        posterior = self.pool.posterior.pick(rows.tolist())
        noise = skew_to_noisy(self.surrogate.draw([self.generator] * size, 128), len(self.surrogate.alphas) - 1)
        latents = self.surrogate.latents(Posterior(posterior.mean.float(), posterior.std.float()), noise)
        return Batch(latents, noise, Prompt(self.captions[torch.from_numpy(caption)])), faces[:, None]


def train(
    unet: UNet2DConditionModel,
    batches: BatchSampler,
    rate: float,
    seconds: float,
    save: Callable[[dict[str, float]], None],
) -> None:
    """Train for `seconds` of processor time; call `save` with the progress every SAVE_S seconds and at the end."""
    trainable = list(unet.encoder_hid_proj.parameters())
    for processor in unet.attn_processors.values():
        trainable += processor.parameters() if isinstance(processor, torch.nn.Module) else []
    for parameter in trainable:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(trainable, lr=rate, weight_decay=1e-2)
    begin, saved, step, mean = time.process_time(), time.process_time(), 0, math.nan
    while (share := (time.process_time() - begin) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * share))
        batch, faces = batches()
        conditioned = partial(unet, added_cond_kwargs={"image_embeds": [faces]})
        loss = batches.surrogate.loss(conditioned, batch.latents, batch.noise, batch.prompt)
        optimiser.zero_grad(set_to_none=True)
        value = float(loss.detach())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()
        step, mean = step + 1, value if math.isnan(mean) else 0.99 * mean + 0.01 * value
        if time.process_time() - saved > SAVE_S:
            saved = time.process_time()
            save({"step": step, "loss": round(mean, 4), "seconds": round(saved - begin)})
    save({"step": step, "loss": round(mean, 4), "seconds": round(seconds)})


def main() -> None:
    """Train one adapter; print the progress as one JSON object per line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--assets", type=Path, required=True, help="folder with faces/")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file")
    parser.add_argument("--encoder", default="embedded:residual", help="identity encoder that it is conditioned on")
    parser.add_argument("--minutes", type=float, default=60, help="processor time, summed over threads")
    parser.add_argument("--start", type=Path, help="adapter to continue from")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--crops", type=int, default=100_000, help="maximum number of crops")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    surrogate, encoder = Surrogate("embedded", torch.device("cpu")), named_encoder(options.encoder)
    pool = encode_pool(options.assets, surrogate, encoder, options.crops)
    print(json.dumps({"crops": len(pool.same), "encoder": encoder.name, "base": surrogate.sha256}), flush=True)
    unet = surrogate.fresh_network()
    weights = initial_adapter(unet, pool.embeddings.shape[1], Generator().manual_seed(options.seed))
    if options.start:
        weights = {
            part: {k: v.float() for k, v in w.items()}
            for part, w in adapter_weights(str(options.start), "IP-Adapter FaceID").items()
        }
    unet._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)

    def save(progress: dict[str, float]) -> None:
        print(json.dumps(progress), flush=True)
        metadata = {"encoder": encoder.name, "encoder_sha256": encoder.sha256, "base_sha256": surrogate.sha256}
        partial_file = options.output.with_name(options.output.name + ".part")
        save_file(export_adapter(unet), partial_file, metadata | {key: str(value) for key, value in progress.items()})
        partial_file.replace(options.output)

    options.output.parent.mkdir(parents=True, exist_ok=True)
    train(unet, BatchSampler(pool, surrogate, options.batch, options.seed), options.rate, 60 * options.minutes, save)


if __name__ == "__main__":
    main()
