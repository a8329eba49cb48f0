"""Cells of tables as text: names and addresses of photos, whatever type their column has."""

import math
from decimal import Decimal

BLANK = "\ufeff\u200b"  # a byte order mark, and a space without width, which `strip` leaves
MAX_WHOLE = 2**53  # above this a floating-point number stands for several whole ones

IDENTITY = ("identity", "identity_id", "person", "person_id", "subject", "subject_id", "celeb_id", "celebrity_id")
"""Columns and JSON keys that name the person on a photo, the first that is there. A `label` may be anything."""
ROLES = {"": "B", "protect": "B", "clean": "A", "ignore": "C"}
"""Role to mark of the spool."""


class Refused(str):
    """Why a cell is no text; never a value."""


def bare(text: str) -> str:
    """Return a text without spaces of any kind and byte order marks around it."""
    before = None
    while before != text:
        before, text = text, text.strip().strip(BLANK)
    return text


def text_of(value: object) -> str:
    """Return the text of a cell, "" for None and NaN: bytes as UTF-8, whole numbers without a point; else Refused.

    Bytes that are not UTF-8 become lone surrogates.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return bare(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bare(bytes(value).decode("utf-8", "surrogateescape"))
    if isinstance(value, bool):
        return Refused(f"is a truth value ({value}); write names as text")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal):
        number = float(value)
        whole = math.isfinite(number) and number == int(number) and abs(number) < MAX_WHOLE
        return str(int(value)) if whole else Refused(f"is {value}, no whole number; write names as text")
    return Refused(f"is a {type(value).__name__}; write names as text")
