"""Train the tiny model's IP-Adapter FaceID: `python -m dladiff.evaluation.train_adapter --help`.

Ye et al. 2023 (IP-Adapter): decoupled cross-attention. The base model is frozen; what learns is the projection of an
identity embedding to four tokens and a key and a value matrix for them in every cross-attention layer.
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
"""Image tokens; diffusers' loader reads no other number for FaceID."""
WIDTH = 2
"""Hidden width of the projection over the embedding's."""
CAPTIONS = (
    "a photo of sks person",
    "a dslr portrait of sks person",
    "a photo of person",
    "a photo of a person",
    "a portrait of a person",
)
NO_TEXT, NO_FACE = 0.1, 0.1
"""Shares of the photos that are shown without their caption and without their embedding: what guidance needs."""
OTHER_PHOTO = 0.5
"""Share that is shown with the embedding of another photo of the person: identity, not this photo's pose."""


@dataclass(frozen=True)
class Pool:
    """The crops of the people not held out: latents, embeddings `n d`, and the photos of each photo's person."""

    posterior: Posterior
    embeddings: Tensor
    same: list[NDArray[np.int64]]


def read_pool(assets: Path, surrogate: Surrogate, encoder: IdentityEncoder, most: int) -> Pool:
    """Encode at most `most` crops, every second one mirrored."""
    crops, matrix = training_crops(assets, most)
    means, stds, embeddings = [], [], []
    for pixels in mirrored(crops, 16):
        faces = np.stack([align(p, matrix) for p in pixels])
        with torch.no_grad():
            embeddings.append(encoder(torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 255))
        found = surrogate.encode_fixed(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, 16)
        means.append(found.mean.half())
        stds.append(found.std.half())
    people: dict[str, list[int]] = defaultdict(list)
    for i, crop in enumerate(crops):
        people[crop.person].append(i)
    same = [np.asarray(people[c.person]) for c in crops]
    return Pool(Posterior(torch.cat(means), torch.cat(stds)), torch.cat(embeddings), same)


def untrained(unet: UNet2DConditionModel, dimensions: int, generator: Generator) -> dict[str, dict[str, Tensor]]:
    """Return a fresh adapter in IP-Adapter's own layout. A unit vector's entries are small, so its weights are not."""
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


def trained(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Read the adapter back out of the UNet, in the file layout that diffusers' `load_ip_adapter` reads."""
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


def late(noise: Noise, last: int) -> Noise:
    """Move uniform timesteps 1..last to a density that grows with t: identity is decided at the noisy end."""
    t = (noise.t / last).sqrt().mul(last).ceil().long()
    return Noise(t, noise.latent, noise.posterior)


class Lessons:
    """Random batches of one pool."""

    def __init__(self, pool: Pool, surrogate: Surrogate, size: int, seed: int) -> None:
        self.pool, self.surrogate, self.size = pool, surrogate, size
        self.rng, self.generator = np.random.default_rng(seed), Generator().manual_seed(seed)
        self.captions = torch.cat([surrogate.prompt(c).embedding for c in ("", *CAPTIONS)])

    def __call__(self) -> tuple[Batch, Tensor]:
        """Return a batch, with a prompt a photo, and its embeddings `b 1 d`."""
        rng, size = self.rng, self.size
        rows = rng.integers(0, len(self.pool.same), size)
        shown = [rng.choice(self.pool.same[i]) if rng.random() < OTHER_PHOTO else i for i in rows]
        faces = self.pool.embeddings[shown] * torch.from_numpy(rng.random((size, 1)) >= NO_FACE).float()
        caption = np.where(rng.random(size) < NO_TEXT, 0, rng.integers(1, len(self.captions), size))
        some = self.pool.posterior.pick(rows.tolist())
        noise = late(self.surrogate.draw([self.generator] * size, 128), len(self.surrogate.alphas) - 1)
        latents = self.surrogate.latents(Posterior(some.mean.float(), some.std.float()), noise)
        return Batch(latents, noise, Prompt(self.captions[torch.from_numpy(caption)])), faces[:, None]


def train(
    unet: UNet2DConditionModel, lessons: Lessons, rate: float, seconds: float, save: Callable[[dict[str, float]], None]
) -> None:
    """Train for so many seconds of one core, saving every two minutes and at the end."""
    learning = list(unet.encoder_hid_proj.parameters())
    for processor in unet.attn_processors.values():
        learning += processor.parameters() if isinstance(processor, torch.nn.Module) else []
    for parameter in learning:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(learning, lr=rate, weight_decay=1e-2)
    begin, saved, step, mean = time.process_time(), time.process_time(), 0, math.nan
    while (share := (time.process_time() - begin) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * share))
        batch, faces = lessons()
        seeing = partial(unet, added_cond_kwargs={"image_embeds": [faces]})
        loss = lessons.surrogate.loss(seeing, batch.latents, batch.noise, batch.prompt)
        optimiser.zero_grad(set_to_none=True)
        value = float(loss.detach())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        step, mean = step + 1, value if math.isnan(mean) else 0.99 * mean + 0.01 * value
        if time.process_time() - saved > 120:
            saved = time.process_time()
            save({"step": step, "loss": round(mean, 4), "seconds": round(saved - begin)})
    save({"step": step, "loss": round(mean, 4), "seconds": round(seconds)})


def main() -> None:
    """Train one adapter; one JSON object a line says how far it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--assets", type=Path, required=True, help="folder with faces/")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file")
    parser.add_argument("--encoder", default="embedded:residual", help="identity encoder that it listens to")
    parser.add_argument("--minutes", type=float, default=60, help="processor time, all threads together")
    parser.add_argument("--start", type=Path, help="adapter to train on")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--crops", type=int, default=100_000, help="most crops")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    surrogate, encoder = Surrogate("embedded", torch.device("cpu")), named_encoder(options.encoder)
    pool = read_pool(options.assets, surrogate, encoder, options.crops)
    print(json.dumps({"crops": len(pool.same), "encoder": encoder.name, "base": surrogate.sha256}), flush=True)
    unet = surrogate.fresh_unet()
    weights = untrained(unet, pool.embeddings.shape[1], Generator().manual_seed(options.seed))
    if options.start:
        weights = {
            part: {k: v.float() for k, v in w.items()}
            for part, w in adapter_weights(str(options.start), "IP-Adapter FaceID").items()
        }
    unet._load_ip_adapter_weights([weights], low_cpu_mem_usage=False)

    def save(found: dict[str, float]) -> None:
        print(json.dumps(found), flush=True)
        about = {"encoder": encoder.name, "encoder_sha256": encoder.sha256, "base_sha256": surrogate.sha256}
        beside = options.output.with_name(options.output.name + ".part")
        save_file(trained(unet), beside, about | {key: str(value) for key, value in found.items()})
        beside.replace(options.output)

    options.output.parent.mkdir(parents=True, exist_ok=True)
    train(unet, Lessons(pool, surrogate, options.batch, options.seed), options.rate, 60 * options.minutes, save)


if __name__ == "__main__":
    main()
