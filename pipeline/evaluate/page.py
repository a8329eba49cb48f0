"""tables.html, the page of an evaluation, and contact sheets of generated faces. The page loads nothing."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dladiff.core.arrays import Pixels
from dladiff.errors import NotFoundError, PhotoError
from dladiff.evaluation.tables import Evaluation, Table
from pipeline.records.output_format import PNG
from pipeline.report.page import asset, embedded, filled
from pipeline.sources.decode import decode
from pipeline.storage.base import Storage
from pipeline.storage.keys import escape, shown

TILE, COLUMNS, ROWS = 96, 8, 12
"""Contact sheet: side of a face in px, faces of a person, people."""
LABEL = 14
"""Height in px of the name above a person's row."""
MAX_FACE_PIXELS = 2048 * 2048
"""Largest generated face that is decoded."""


def write_sheets(results: Storage, evaluation: Evaluation) -> list[tuple[str, bytes]]:
    """Write a contact sheet (PNG) of generated faces for each attack and method; return titles and pictures."""
    sheets: list[tuple[str, bytes]] = []
    prompt = evaluation.prompts[0]
    for attack in evaluation.attacks:
        for condition in evaluation.conditions:
            records = [r for r in evaluation.of(condition, attack).done if r["faces"].get(prompt)]
            first = {r["identity"]: r for r in reversed(records)}  # with several seeds, the first
            rows = [(name, first[name]["faces"][prompt]) for name in sorted(first)][:ROWS]
            if rows:
                picture = _sheet(results, rows)
                results.put(f"sheets/{escape(attack)}--{escape(condition)}{PNG.suffix}", picture, PNG.content_type)
                sheets.append((f"{attack}: {condition}", picture))
    return sheets


def render(tables: Sequence[Table], head: str, about: Sequence[str], sheets: Sequence[tuple[str, bytes]]) -> str:
    """Return a self-contained page whose policy forbids connections; every value is escaped."""
    pictures = [(title, embedded(_webp(data))) for title, data in sheets]
    css = asset("report.css", "evaluation.css")
    return filled("evaluation.html.j2", css, tables=tables, head=head, about=about, sheets=pictures)


def _sheet(results: Storage, rows: Sequence[tuple[str, Sequence[str]]]) -> bytes:
    height = TILE + LABEL
    sheet = Image.new("RGB", (TILE * COLUMNS, height * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, keys) in enumerate(rows):
        draw.text((2, i * height + 1), shown(name).encode("ascii", "replace").decode()[:60], fill="black")
        for j, key in enumerate(keys[:COLUMNS]):
            face = Image.fromarray(read_face(results, key)).resize((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(face, (j * TILE, i * height + LABEL))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def read_face(results: Storage, key: str) -> Pixels:
    """Return a stored face, or a grey square if it is missing or damaged."""
    try:
        return decode(results.get(key), max_pixels=MAX_FACE_PIXELS, min_side=1).pixels
    except (PhotoError, NotFoundError):
        return np.full((TILE, TILE, 3), 128, np.uint8)


def _webp(png: bytes) -> bytes:
    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.save(out, "WEBP", quality=80)
    return out.getvalue()
