"""Names as data: identity and photo names become key-safe ids, and storage keys are checked before use."""

import hashlib
import unicodedata
from pathlib import PurePosixPath
from urllib.parse import quote

MAX_ID = 120  # characters; an id, a digest and an extension together stay under the 255 bytes of a file name
KEPT = 100  # characters of a longer name that stay readable


def escape(identity: str) -> str:
    """Return a key-safe id: no "/", no leading ".", at most 120 characters; distinct names give distinct ids.

    `urllib.parse.unquote` gives the name back unless it was shortened. "~" is escaped too, so that only a
    shortened id contains one. The empty name becomes "%", which no other name gives.
    """
    raw = identity.encode("utf-8", "surrogatepass")
    quoted = quote(raw, safe="").replace("~", "%7E")
    if quoted.startswith("."):
        quoted = "%2E" + quoted[1:]
    if len(quoted) > MAX_ID:
        return f"{quoted[:KEPT]}~{hashlib.sha256(raw).hexdigest()[:12]}"
    return quoted or "%"


def task_name(identity: str, part: int) -> str:
    """Return the key-safe name of a task; "~" stands in no escaped name before four digits and the end."""
    return f"{escape(identity)}~{part:04d}" if part else escape(identity)


def stem(uri: str) -> str:
    """Return the key-safe stem of a photo: the file name of a key or URI, without its extension, escaped."""
    return escape(PurePosixPath(uri.rsplit("/", 1)[-1]).stem)


def key_fault(key: str) -> str | None:
    """Return why `key` is refused as a storage key, or None for a relative POSIX path that stays inside."""
    if not key:
        return "it is empty"
    if "\0" in key or "\\" in key:
        return "it holds a NUL or a backslash"
    if key.startswith("/"):
        return "it is absolute"
    if any(part in ("", ".", "..") for part in key.split("/")):
        return 'it has an empty, "." or ".." part'
    if any(unicodedata.category(c) == "Cs" for c in key):
        return "it is not UTF-8"
    return None


def shown(text: str) -> str:
    """Return `text` fit for one line of a message: characters that do not print are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
