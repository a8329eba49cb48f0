"""Check a finished run from its stored files alone; shares no code with dladiff/ or pipeline/.

python tests/acceptance/check_output.py --originals DIR --output DIR --packs DIR... [--held-out ENCODER.onnx ...]

For every row of manifest/photos.parquet: checksum and size. With `--visibility V`: |difference| <= 12/255, and
SSIMULACRA2 of the photo and of the square around each face >= V; cosines are reported. Without: |difference| <= 18/255
in the face boxes and <= 7/255 elsewhere, PSNR >= 32 dB; for every pack, the cosine of original to protected photo, each
detected anew, <= 0.15.
Held-out encoders are reported and never cause a fault. Exit code 1 on any fault.
"""

import argparse
import hashlib
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import cv2
import numpy as np
import pyarrow.parquet as pq
from insightface.app import FaceAnalysis
from insightface.model_zoo import get_model
from numpy.typing import NDArray
from PIL import Image, ImageOps
from ssimulacra2 import compute_ssimulacra2

IN_FACE, ELSEWHERE, JOINT = 18, 7, 12
MIN_PSNR, MAX_COSINE = 32.0, 0.15
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
Pixels = NDArray[np.uint8]


@dataclass
class Result:
    """Measurements and faults of one photo."""

    name: str
    linf_face: int = 0
    linf: int = 0
    psnr: float = float("nan")
    seen: list[float] = field(default_factory=list)
    cosines: list[float | None] = field(default_factory=list)
    held_out: list[float | None] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Pack:
    """An InsightFace pack with the default settings that an attacker would use."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        with redirect_stdout(StringIO()):
            self.app = FaceAnalysis(
                name=str(folder.resolve()),
                allowed_modules=["detection", "recognition"],
                providers=["CPUExecutionProvider"],
            )
            self.app.prepare(ctx_id=-1, det_size=None)

    def largest_face(self, rgb: Pixels) -> tuple[Any, Pixels] | None:
        """Return the largest face and its BGR image: the photo, or without a face the photo padded to double size."""
        bgr = np.ascontiguousarray(rgb[..., ::-1])
        height, width = bgr.shape[:2]
        border = (height // 2, height - height // 2, width // 2, width - width // 2)
        for image in (bgr, cv2.copyMakeBorder(bgr, *border, cv2.BORDER_CONSTANT)):
            if faces := self.app.get(image):
                return max(faces, key=lambda f: (f.bbox[2] - f.bbox[0]) * (f.bbox[3] - f.bbox[1])), image
        return None


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    a, b = a.ravel(), b.ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def read(path: Path) -> Pixels:
    return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


def located(uri: str, root: Path) -> Path | None:
    """Find a manifest URI under `root`: by the whole path, or by its longest tail that exists there."""
    path = Path(unquote(urlparse(uri).path) if uri.startswith("file:") else uri)
    if path.is_file() and path.resolve().is_relative_to(root.resolve()):
        return path
    parts = path.parts[1:] if path.is_absolute() else path.parts
    tails = (root.joinpath(*parts[i:]) for i in range(len(parts)))
    return next((tail for tail in tails if tail.is_file()), None)


def inside_boxes(faces: list[dict[str, Any]], height: int, width: int) -> NDArray[np.bool_]:
    """Return a mask of the pixels [k, k+1] that are completely inside a face box."""
    mask = np.zeros((height, width), bool)
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    for face in faces:
        x0, y0, x1, y1 = face["box"]
        mask |= (x >= x0) & (x + 1 <= x1) & (y >= y0) & (y + 1 <= y1)
    return mask


def ssimulacra2(before: Pixels, after: Pixels) -> float:
    """Return the package's score, of pictures of at most 1,080 px."""
    files = []
    for pixels in (before, after):
        image = Image.fromarray(pixels)
        if (scale := 1080 / max(image.size)) < 1:
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        files.append(BytesIO())
        image.save(files[-1], "PNG")
        files[-1].seek(0)
    return float(compute_ssimulacra2(*files))


def continued(square: Pixels) -> Pixels:
    """Return a square continued by its mirror image up to 256 px."""
    return np.pad(square, [*((0, max(0, 256 - side)) for side in square.shape[:2]), (0, 0)], mode="symmetric")


def check_visibility(
    result: Result, before: Pixels, after: Pixels, faces: list[dict[str, Any]], visibility: float
) -> None:
    height, width = before.shape[:2]
    parts = [(0, 0, width, height)]
    for face in faces:
        x0, y0, x1, y1 = face["box"]
        side = max(8, round(1.25 * max(x1 - x0, y1 - y0)))
        across, down = min(side, width), min(side, height)
        left = min(max(0, round((x0 + x1 - across) / 2)), width - across)
        top = min(max(0, round((y0 + y1 - down) / 2)), height - down)
        parts.append((left, top, left + across, top + down))
    whole, *squares = [(before[b:d, a:c], after[b:d, a:c]) for a, b, c, d in parts]
    result.seen = [ssimulacra2(*whole), *(ssimulacra2(continued(p), continued(q)) for p, q in squares)]
    if min(result.seen) < visibility:
        result.faults.append(f"SSIMULACRA2 {min(result.seen):.1f}")
    if max(result.linf, result.linf_face) > JOINT:
        result.faults.append(f"{max(result.linf, result.linf_face)}/255")


def check_pixels(result: Result, before: Pixels, after: Pixels, faces: list[dict[str, Any]], visibility: float) -> None:
    difference = np.abs(before.astype(np.int16) - after.astype(np.int16))
    mask = inside_boxes(faces, *before.shape[:2])
    result.linf_face = int(difference[mask].max(initial=0))
    result.linf = int(difference[~mask].max(initial=0))
    mse = float(np.square(difference.astype(np.float64)).mean())
    result.psnr = 10 * np.log10(255**2 / mse) if mse else float("inf")
    if visibility:
        check_visibility(result, before, after, faces, visibility)
        return
    if result.linf_face > IN_FACE:
        result.faults.append(f"{result.linf_face}/255 in a face box")
    if result.linf > ELSEWHERE:
        result.faults.append(f"{result.linf}/255 outside the face boxes")
    if result.psnr < MIN_PSNR:
        result.faults.append(f"PSNR {result.psnr:.2f} dB")


def check_faces(
    result: Result, before: Pixels, after: Pixels, packs: list[Pack], held_out: list[Any], most: float
) -> None:
    for number, pack in enumerate(packs):
        old, new = pack.largest_face(before), pack.largest_face(after)
        if old is None:
            result.faults.append(f"{pack.name} finds no face in the original")
        value = cosine(old[0].embedding, new[0].embedding) if old and new else None
        result.cosines.append(value)
        if value is not None and value > most:
            result.faults.append(f"{pack.name} cosine {value:.3f}")
        if number == 0:
            for encoder in held_out:
                pair = [encoder.get(image, face) for face, image in (old, new)] if old and new else None
                result.held_out.append(cosine(*pair) if pair else None)


def check_row(
    row: dict[str, Any], originals: Path, output: Path, packs: list[Pack], held_out: list[Any], visibility: float
) -> Result:
    result = Result(f"{row['identity']}/{Path(row['source_uri']).name}")
    if row["status"] not in ("protected", "layer1_only"):
        result.faults.append(f"status {row['status']}: {row['reason']}")
        return result
    source, stored = located(row["source_uri"], originals), located(row["output_uri"], output)
    if source is None or stored is None:
        result.faults.append("original not found" if source is None else "protected photo not found")
        return result
    for path, column in ((source, "source_sha256"), (stored, "output_sha256")):
        if hashlib.sha256(path.read_bytes()).hexdigest() != row[column]:
            result.faults.append(f"{column} differs")
    before, after = read(source), read(stored)
    if before.shape != after.shape:
        result.faults.append(f"size {after.shape[1]}x{after.shape[0]}, was {before.shape[1]}x{before.shape[0]}")
        return result
    check_pixels(result, before, after, row["faces"] or [], visibility)
    if row["status"] == "protected":
        check_faces(result, before, after, packs, held_out, 1.0 if visibility else MAX_COSINE)
    return result


def missing(rows: list[dict[str, Any]], originals: Path) -> list[str]:
    """Return the photos without a row, except those of set_A and set_C, which are never protected."""
    seen = {path.resolve() for row in rows if (path := located(row["source_uri"], originals))}
    photos = [p for p in sorted(originals.rglob("*")) if p.suffix.lower() in SUFFIXES]
    photos = [p for p in photos if not any(part.startswith(("set_A", "set_C")) for part in p.parts)]
    return [str(p.relative_to(originals)) for p in photos if p.resolve() not in seen]


def show(results: list[Result], packs: list[Pack], held_out: list[Path]) -> None:
    names = [pack.name for pack in packs] + [f"{path.stem} (held out)" for path in held_out]
    print(f"{'photo':<44} {'face':>4} {'else':>4} {'PSNR':>6} {'seen':>6}  {'  '.join(names)}")
    for r in results:
        values = [*r.cosines, *r.held_out] or [None] * len(names)
        texts = [("-" if v is None else f"{v:.3f}").rjust(len(n)) for v, n in zip(values, names, strict=True)]
        seen = min(r.seen, default=float("nan"))
        print(f"{r.name:<44} {r.linf_face:>4} {r.linf:>4} {r.psnr:>6.2f} {seen:>6.1f}  {'  '.join(texts)}")
        for fault in r.faults:
            print(f"    FAULT: {fault}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--originals", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--packs", type=Path, nargs="+", required=True)
    parser.add_argument("--held-out", type=Path, nargs="*", default=[])
    parser.add_argument("--visibility", type=float, default=0.0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="insightface")
    rows = pq.read_table(args.output / "manifest" / "photos.parquet").to_pylist()
    packs = [Pack(folder) for folder in args.packs]
    held_out = [get_model(str(path), providers=["CPUExecutionProvider"]) for path in args.held_out]
    results = [check_row(row, args.originals, args.output, packs, held_out, args.visibility) for row in rows]
    show(results, packs, args.held_out)
    absent = missing(rows, args.originals)
    for name in absent:
        print(f"FAULT: {name} has no row in the manifest")
    faulty = sum(bool(r.faults) for r in results) + len(absent)
    print(f"{len(results)} photos, {faulty} with faults")
    return 1 if faulty or not results else 0


if __name__ == "__main__":
    sys.exit(main())
