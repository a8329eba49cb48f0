"""Train another base model for the tiny profile: `python -m dladiff.training.base --help`.

A UNet of its own beside the profile's VAE and text encoder, as Stable Diffusion 1.5 and 2.1 have nearly the same VAE:
`dladiff evaluate --base embedded --base FOLDER` then says what protection made on one base does to the other.
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
"""Share of the photos that are shown without a caption: what guidance needs."""
MOST_SNR = 5.0
"""Above it a timestep's loss weighs less (Hang et al. 2023, min-SNR): nearly clean latents teach little."""
MEMORY = 0.995
"""Of the running mean of the weights, which is what is saved."""


def encoded(assets: Path, surrogate: Surrogate, most: int) -> Posterior:
    """Encode at most `most` crops of the people not held out, every second one mirrored; kept as fp16."""
    means, stds = [], []
    for pixels in mirrored(training_crops(assets, most)[0], 16):
        found = surrogate.encode_fixed(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, 16)
        means.append(found.mean.half())
        stds.append(found.std.half())
    return Posterior(torch.cat(means), torch.cat(stds))


def lesson(surrogate: Surrogate, pool: Posterior, size: int, rng: np.random.Generator, generator: Generator) -> Batch:
    """Draw a batch with a caption a photo."""
    some = pool.pick(rng.integers(0, len(pool.mean), size).tolist())
    caption = np.where(rng.random(size) < NO_TEXT, 0, rng.integers(1, len(CAPTIONS) + 1, size))
    captions = torch.cat([surrogate.prompt(text).embedding for text in ("", *CAPTIONS)])
    noise = surrogate.draw([generator] * size, pool.mean.shape[-1] * surrogate.factor)
    latents = surrogate.latents(Posterior(some.mean.float(), some.std.float()), noise)
    return Batch(latents, noise, Prompt(captions[torch.from_numpy(caption)]))


def snr_weights(alphas: Tensor, noise: Noise) -> Tensor:
    """Return each image's weight, `b`: min(SNR, MOST_SNR) / SNR, where SNR = a_t / (1 - a_t)."""
    ratio = alphas[noise.t] / (1 - alphas[noise.t])
    return ratio.clamp(max=MOST_SNR) / ratio


def train(
    surrogate: Surrogate,
    unet: UNet2DConditionModel,
    draw: Callable[[], Batch],
    rate: float,
    seconds: float,
    save: Callable[[UNet2DConditionModel, dict[str, float]], None],
) -> None:
    """Train for so many seconds of processor time; the running mean of the weights is saved every two minutes."""
    unet.train().requires_grad_(True)
    mean = copy.deepcopy(unet).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)
    begin, saved, step, shown = time.process_time(), time.process_time(), 0, math.nan
    while (share := (time.process_time() - begin) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * share))
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
        kept = min(MEMORY, step / (step + 20))
        torch._foreach_lerp_(list(mean.parameters()), [p.detach() for p in unet.parameters()], 1 - kept)
        step, shown = step + 1, value if math.isnan(shown) else 0.98 * shown + 0.02 * value
        if time.process_time() - saved > 120:
            saved = time.process_time()
            save(mean, {"step": step, "loss": round(shown, 4), "seconds": round(saved - begin)})
    save(mean, {"step": step, "loss": round(shown, 4), "seconds": round(seconds)})


def write(output: Path, unet: UNet2DConditionModel) -> None:
    """Write the base model: the profile's parts, this UNet as fp16, and for attackers that it knows faces alone."""
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
    """Train one base model; one JSON object a line says how far it is."""
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
        lambda: lesson(surrogate, pool, options.batch, rng, generator),
        options.rate,
        60 * options.minutes,
        save,
    )


if __name__ == "__main__":
    main()
