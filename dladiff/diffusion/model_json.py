"""JSON files of model folders from untrusted sources: read within size limits, refused in one line."""

import json
from pathlib import Path
from typing import Any

from dladiff.errors import ModelError

MAX_JSON = 16 * 2**20
"""Largest JSON file read, bytes: the largest known, a tokenizer of 49,408 entries, has 4 MB."""
MAX_QUOTED = 80
"""Characters of a value from a file that a message quotes."""


def read_object(file: Path, hint: str = "fetch the model again") -> dict[str, Any]:
    """Return the JSON object in a file. Raises ModelError: missing, too large, damaged, too deep or no object."""
    try:
        size = file.stat().st_size
        if size > MAX_JSON:
            raise ModelError(f"{file} has {size} bytes, at most {MAX_JSON} are read: it is no configuration; {hint}")
        found = parsed(file.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{file} is missing; {hint}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON; {hint}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} is no configuration; {hint}")
    return found


def parsed(text: str | bytes) -> Any:
    """Return the parsed JSON. Raises ValueError, also for JSON that is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def quoted(value: Any) -> str:
    """Return a value from a file as printable text of at most MAX_QUOTED characters, for a message."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."
