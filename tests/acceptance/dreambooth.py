"""Attack stored photos with DreamBooth on the tiny model and print identity similarity of what it generates.

Independent of the pipeline: reads files, shares no code with dladiff/ or pipeline/. Conditions: the clean photos,
photos with random-sign noise of the same PSNR, and the protected photos. ISM is the cosine to the mean embedding of
the person's reference photos, images without a face counted as 0 (ism_all) or left out (ism_detected).

    python tests/acceptance/dreambooth.py --assets DIR --bundle dladiff/profiles/tiny/bundle --output OUT --log FILE
"""

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch.nn import functional

ENCODERS = ("mobilefacenet_tf", "mobilefacenet_y1")
TEMPLATE = np.array([[0.3184, 0.3979], [0.6858, 0.3915], [0.5052, 0.6034], [0.3657, 0.7825], [0.6600, 0.7778]])


class FaceEmbedder:
    """SCRFD detection on the padded photo, ArcFace alignment, and two real encoders."""

    def __init__(self, assets: Path) -> None:
        from insightface.model_zoo import get_model

        sys.path.insert(0, str(assets / "encoders"))
        import crops
        import graphnet

        self.crops, self.graphnet = crops, graphnet
        self.detector = get_model(str(assets / "detectors" / "det_500m.onnx"), providers=["CPUExecutionProvider"])
        self.detector.prepare(ctx_id=-1, input_size=(320, 320), det_thresh=0.5)
        self.nets = {n: graphnet.load(str(assets / "encoders" / f"{n}.safetensors")) for n in ENCODERS}

    def landmarks(self, rgb: np.ndarray) -> np.ndarray | None:
        pad = max(rgb.shape[:2]) // 4
        padded = cv2.copyMakeBorder(np.ascontiguousarray(rgb[:, :, ::-1]), pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        scale = 320 / max(padded.shape[:2])
        boxes, points = self.detector.detect(cv2.resize(padded, None, fx=scale, fy=scale), max_num=0)
        if boxes is None or not len(boxes):
            return None
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return points[area.argmax()] / scale - pad

    def embed(self, rgb: np.ndarray) -> dict[str, np.ndarray] | None:
        points = self.landmarks(rgb)
        if points is None:
            return None
        crop = torch.from_numpy(self.crops.crop(rgb, points, "arcface112"))[None]
        with torch.no_grad():
            return {n: self.graphnet.embed(net, pre, crop)[0].numpy() for n, (net, pre) in self.nets.items()}


def face_crop(rgb: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return a crop of 128 px, framed as the tiny model's training faces."""
    centred, template = points - points.mean(0), TEMPLATE - TEMPLATE.mean(0)
    side = float(np.sqrt((centred**2).sum() / (template**2).sum()))
    x, y = points.mean(0) - TEMPLATE.mean(0) * side
    pad = int(max(0, -x, -y, x + side - rgb.shape[1], y + side - rgb.shape[0])) + 2
    padded = cv2.copyMakeBorder(rgb, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    x, y, side = round(x + pad), round(y + pad), round(side)
    return cv2.resize(padded[y : y + side, x : x + side], (128, 128), interpolation=cv2.INTER_AREA)


def noise_like(original: np.ndarray, protected: np.ndarray, seed: int) -> np.ndarray:
    """Return the original with random-sign noise where `protected` differs, with the same mean squared error."""
    rng = np.random.default_rng(seed)
    difference = protected.astype(float) - original
    where = (np.abs(difference).max(2, keepdims=True) > 0).astype(float)
    target, sign = np.square(difference).mean(), rng.choice([-1.0, 1.0], original.shape)
    low, high = 0.0, 64.0
    for _ in range(30):
        middle = (low + high) / 2
        noisy = np.clip(original + middle * sign * where, 0, 255).round()
        low, high = (middle, high) if np.square(noisy - original).mean() < target else (low, middle)
    return noisy.astype(np.uint8)


def dreambooth(pipe: StableDiffusionPipeline, faces: list[np.ndarray], seed: int, steps: int, lr: float):
    """Train a copy of the bundle's UNet by DreamBooth: AdamW, batch 4, fp32."""
    torch.manual_seed(seed)
    alphas = DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod
    unet = copy.deepcopy(pipe.unet).train().requires_grad_(True)
    prompt = pipe.encode_prompt("a photo of sks person", "cpu", 1, False)[0].detach()
    x = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        posterior = pipe.vae.encode(x).latent_dist
    optimiser = torch.optim.AdamW(unet.parameters(), lr=lr, weight_decay=1e-2)
    for _ in range(steps):
        with torch.no_grad():
            z = posterior.sample()
        t, noise = torch.randint(0, 1000, (len(z),)), torch.randn_like(z)
        alpha = alphas[t].view(-1, 1, 1, 1)
        predicted = unet(alpha.sqrt() * z + (1 - alpha).sqrt() * noise, t, prompt.expand(len(z), -1, -1)).sample
        loss = functional.mse_loss(predicted, noise)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
    return unet.eval()


def generate(pipe: StableDiffusionPipeline, unet, count: int) -> list[np.ndarray]:
    """Sample faces with DPM-Solver++, 20 steps, guidance 2."""
    sampler = StableDiffusionPipeline(
        vae=pipe.vae, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer, unet=unet, safety_checker=None,
        scheduler=DPMSolverMultistepScheduler.from_config(pipe.scheduler.config), feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    sampler.set_progress_bar_config(disable=True)
    images = sampler(
        ["a photo of sks person"] * count, num_inference_steps=20, guidance_scale=2.0, output_type="np",
        generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip
    return list((images * 255).round().astype(np.uint8))


def score(embedder: FaceEmbedder, images: list[np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
    found = [e for e in map(embedder.embed, images) if e is not None]
    out = {"n": len(images), "fdr": len(found) / len(images)}
    for name in ENCODERS:
        cosines = [float(e[name] @ reference[name]) for e in found]
        out[f"ism_all_{name}"] = sum(cosines) / len(images)
        out[f"ism_detected_{name}"] = sum(cosines) / max(1, len(cosines))
    return out


def read(path: str | Path) -> np.ndarray:
    pixels: Any = cv2.imread(str(path), cv2.IMREAD_COLOR)
    return pixels[:, :, ::-1].copy()


def local(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--assets", "--bundle", "--output", "--log"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--photos", type=int, default=4, help="photos of each person that the attacker trains on")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    embedder = FaceEmbedder(options.assets)
    pipe = StableDiffusionPipeline.from_pretrained(
        options.bundle, safety_checker=None, torch_dtype=torch.float32, local_files_only=True
    )
    people: dict[str, list[dict]] = {}
    for row in pq.read_table(options.output / "manifest" / "photos.parquet").to_pylist():
        if row["output_uri"] and row["faces"]:
            people.setdefault(row["identity"], []).append(row)
    for identity, rows in sorted(people.items()):
        rows = sorted(rows, key=lambda r: r["source_uri"])[: options.photos]
        folder, used = local(rows[0]["source_uri"]).parent, {local(r["source_uri"]) for r in rows}
        others = [e for p in sorted(folder.iterdir()) if p not in used and (e := embedder.embed(read(p)))]
        reference = {n: np.sum([e[n] for e in others], 0) for n in ENCODERS}
        reference = {n: v / np.linalg.norm(v) for n, v in reference.items()}
        sets: dict[str, list[np.ndarray]] = {"clean": [], "noise": [], "protected": []}
        for i, row in enumerate(rows):
            clean, protected = read(local(row["source_uri"])), read(local(row["output_uri"]))
            points = embedder.landmarks(clean)
            if points is not None:
                for name, photo in zip(sets, (clean, noise_like(clean, protected, i), protected), strict=True):
                    sets[name].append(face_crop(photo, points))
        for seed in options.seeds:
            for condition, faces in sets.items():
                unet = dreambooth(pipe, faces, seed, options.steps, options.lr)
                result = score(embedder, generate(pipe, unet, options.samples), reference)
                line = json.dumps(
                    {"identity": identity, "seed": seed, "condition": condition, "photos": len(faces)} | result
                )
                print(line, flush=True)
                with options.log.open("a") as log:
                    log.write(line + "\n")


if __name__ == "__main__":
    main()
