"""Train another base model for the tiny profile: `python -m dladiff.training.base --help`.

It combines a new UNet with the profile's VAE and text encoder, like Stable Diffusion 1.5 and 2.1, whose VAEs are nearly
the same. `dladiff evaluate --base embedded --base FOLDER` then measures how protection transfers between base models.
"""

import argparse
import copy
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor

from dladiff.diffusion.surrogate import EMBEDDED, Batch, Noise, Posterior, Surrogate
from dladiff.diffusion.text import Prompt
from dladiff.training.data import mirrored, training_crops

CAPTIONS = ("a photo of person", "a photo of a person", "a portrait of a person", "a close-up photo of person")
NO_TEXT = 0.1
"""Share of photos trained without a caption, for classifier-free guidance."""
MAX_SNR = 5.0
"""Clamp of the SNR in the min-SNR loss weight (Hang et al. 2023)."""
EMA_DECAY = 0.995
"""Decay of the exponential moving average of the weights, which is saved."""


def encoded(assets: Path, surrogate: Surrogate, max_crops: int) -> Posterior:
    """Return the fp16 posteriors of at most `max_crops` crops of people not held out, every second one mirrored."""
    means, stds = [], []
    for pixels in mirrored(training_crops(assets, max_crops)[0], 16):
        found = surrogate.encode_fixed(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, 16)
        means.append(found.mean.half())
        stds.append(found.std.half())
    return Posterior(torch.cat(means), torch.cat(stds))


def training_batch(
    surrogate: Surrogate, pool: Posterior, size: int, rng: np.random.Generator, generator: Generator
) -> Batch:
    """Return a random batch of `size` latents, each with its own caption."""
    chosen = pool.pick(rng.integers(0, len(pool.mean), size).tolist())
    caption = np.where(rng.random(size) < NO_TEXT, 0, rng.integers(1, len(CAPTIONS) + 1, size))
    captions = torch.cat([surrogate.prompt(text).embedding for text in ("", *CAPTIONS)])
    noise = surrogate.draw([generator] * size, pool.mean.shape[-1] * surrogate.factor)
    latents = surrogate.latents(Posterior(chosen.mean.float(), chosen.std.float()), noise)
    return Batch(latents, noise, Prompt(captions[torch.from_numpy(caption)]))


def snr_weights(alphas: Tensor, noise: Noise) -> Tensor:
    """Return each image's loss weight, `b`: min(SNR, MAX_SNR) / SNR with SNR = a_t / (1 - a_t)."""
    ratio = alphas[noise.t] / (1 - alphas[noise.t])
    return ratio.clamp(max=MAX_SNR) / ratio


def train(
    surrogate: Surrogate,
    unet: UNet2DConditionModel,
    draw: Callable[[], Batch],
    rate: float,
    seconds: float,
    save: Callable[[UNet2DConditionModel, dict[str, float]], None],
) -> None:
    """Train for `seconds` of processor time; save the averaged weights every two minutes and at the end."""
    unet.train().requires_grad_(True)
    mean = copy.deepcopy(unet).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)
    begin, saved, step, shown = time.process_time(), time.process_time(), 0, math.nan
    while (progress := (time.process_time() - begin) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * progress))
        batch = draw()
        with torch.autocast("cpu", torch.bfloat16):
            predicted = surrogate.predict(unet, batch.latents, batch.noise, batch.prompt)
        error = (predicted.float() - batch.noise.latent).square().mean((1, 2, 3))
        loss = (error * snr_weights(surrogate.alphas, batch.noise)).mean()
        optimiser.zero_grad(set_to_none=True)
        value = float(loss.detach())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        decay = min(EMA_DECAY, step / (step + 20))
        torch._foreach_lerp_(list(mean.parameters()), [p.detach() for p in unet.parameters()], 1 - decay)
        step, shown = step + 1, value if math.isnan(shown) else 0.98 * shown + 0.02 * value
        if time.process_time() - saved > 120:
            saved = time.process_time()
            save(mean, {"step": step, "loss": round(shown, 4), "seconds": round(saved - begin)})
    save(mean, {"step": step, "loss": round(shown, 4), "seconds": round(seconds)})


def write(output: Path, unet: UNet2DConditionModel) -> None:
    """Write the base model: this UNet in fp16, the profile's other parts, and the mark that it generates faces only."""
    if not output.exists():
        beside = output.with_name(output.name + ".part")
        shutil.copytree(EMBEDDED, beside, ignore=shutil.ignore_patterns("unet"), dirs_exist_ok=True)
        index = json.loads((EMBEDDED / "model_index.json").read_bytes())
        (beside / "model_index.json").write_text(json.dumps(index | {"_region": "face"}, indent=2))
        beside.rename(output)
    copy.deepcopy(unet).half().save_pretrained(output / "unet.part")
    shutil.rmtree(output / "unet", ignore_errors=True)
    (output / "unet.part").rename(output / "unet")


def main() -> None:
    """Train one base model; print progress as one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--assets", type=Path, required=True, help="folder with faces/")
    parser.add_argument("--output", type=Path, required=True, help="folder of the diffusers layout")
    parser.add_argument("--minutes", type=float, default=30, help="processor time, all threads together")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--crops", type=int, default=100_000, help="most crops")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)  # first weights
    surrogate = Surrogate("embedded", torch.device("cpu"))
    pool = encoded(options.assets, surrogate, options.crops)
    print(json.dumps({"crops": len(pool.mean), "seed": options.seed}), flush=True)
    rng, generator = np.random.default_rng(options.seed), Generator().manual_seed(options.seed)

    def save(mean: UNet2DConditionModel, found: dict[str, float]) -> None:
        print(json.dumps(found), flush=True)
        write(options.output, mean)

    options.output.parent.mkdir(parents=True, exist_ok=True)
    unet = UNet2DConditionModel.from_config(surrogate.unet.config)
    train(
        surrogate,
        unet,
        lambda: training_batch(surrogate, pool, options.batch, rng, generator),
        options.rate,
        60 * options.minutes,
        save,
    )


if __name__ == "__main__":
    main()
