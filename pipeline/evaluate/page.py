"""The page of an evaluation, tables.html, and contact sheets of generated faces; nothing is sent anywhere."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dladiff.core.arrays import Pixels as UInt8
from dladiff.errors import NotFoundError, PhotoError
from dladiff.evaluation.tables import Evaluation, Table
from pipeline.records.output_format import PNG
from pipeline.report.page import asset, embedded, filled
from pipeline.sources.decode import decode
from pipeline.storage.base import Storage
from pipeline.storage.keys import escape, shown

TILE, ACROSS, DOWN = 96, 8, 12  # px of a face on a contact sheet, faces of a person, people
LABEL = 14  # px above a person's row


def write_sheets(results: Storage, found: Evaluation) -> list[tuple[str, bytes]]:
    """Write a contact sheet (PNG) of generated faces an attack and method; return titles and pictures."""
    sheets: list[tuple[str, bytes]] = []
    for attack in found.attacks:
        for condition in found.conditions:
            records = [r for r in found.of(condition, attack).done if r["faces"].get(found.prompts[0])]
            first = {r["identity"]: r for r in reversed(records)}  # of several seeds the first one's
            rows = [(name, first[name]["faces"][found.prompts[0]]) for name in sorted(first)][:DOWN]
            if rows:
                picture = _sheet(results, rows)
                results.put(f"sheets/{escape(attack)}--{escape(condition)}{PNG.suffix}", picture, PNG.content_type)
                sheets.append((f"{attack}: {condition}", picture))
    return sheets


def render(tables: Sequence[Table], head: str, about: Sequence[str], sheets: Sequence[tuple[str, bytes]]) -> str:
    """Return one page that needs nothing else and may connect nowhere; every value is escaped."""
    pictures = [(title, embedded(_webp(data))) for title, data in sheets]
    css = asset("report.css", "evaluation.css")
    return filled("evaluation.html.j2", css, tables=tables, head=head, about=about, sheets=pictures)


def _sheet(results: Storage, rows: Sequence[tuple[str, Sequence[str]]]) -> bytes:
    height = TILE + LABEL
    sheet = Image.new("RGB", (TILE * ACROSS, height * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, keys) in enumerate(rows):
        draw.text((2, i * height + 1), shown(name).encode("ascii", "replace").decode()[:60], fill="black")
        for j, key in enumerate(keys[:ACROSS]):
            face = Image.fromarray(read_face(results, key)).resize((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(face, (j * TILE, i * height + LABEL))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def read_face(results: Storage, key: str) -> UInt8:
    """Read a stored face; grey where it is gone or damaged."""
    try:
        return decode(results.get(key), max_pixels=2048 * 2048, min_side=1).pixels
    except (PhotoError, NotFoundError):
        return np.full((TILE, TILE, 3), 128, np.uint8)


def _webp(png: bytes) -> bytes:
    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.save(out, "WEBP", quality=80)
    return out.getvalue()
