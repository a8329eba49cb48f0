"""Storage keys and message texts: escape names, check keys, remove secrets."""

import hashlib
import logging
import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

MAX_ID = 120  # characters; with a digest and an extension it stays under the 255 bytes of a file name
KEPT = 100  # readable characters of a name that is shortened
MAX_SHOWN = 200  # characters of a name or address in a message: two lines of a terminal
PROGRAM = ("pipeline", "dladiff")  # the top loggers of this program

_USER = re.compile(  # bounded lengths keep the time linear for hostile texts of megabytes
    r"""(\b[a-z][a-z0-9+.-]{0,20}:/{1,2})"""  # one slash is enough: pathlib merges two
    r"""(?:[^\s/?\#"'<>]{0,512}@"""  # user, or user:password, up to the last @ before the path
    r"""|[^\s/?\#"'<>:]{0,512}:(?!\d{1,5}(?:[/?]|$))[^\s"'<>]{0,512}@)""",  # a password with a slash; no port
    re.IGNORECASE,
)
_QUERY = re.compile(
    r"""([?&;](?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|awsaccesskeyid|googleaccessid|sig"""
    r"""|(?:[a-z]+[-_])?token|api[-_]?key|(?:client[-_]?)?secret|passw(?:or)?d)=)[^&\s\#"'<>]+""",
    re.IGNORECASE,
)
_KEY_ID = re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])")


def escape(identity: str) -> str:
    """Return a key-safe id: no "/", no leading ".", at most 120 characters; distinct names give distinct ids.

    `urllib.parse.unquote` gives the name back unless it was shortened. "~" is escaped too, so only a shortened
    id contains one. The empty name becomes "%", which no other name does.
    """
    raw = identity.encode("utf-8", "surrogatepass")
    quoted = quote(raw, safe="").replace("~", "%7E")
    if quoted.startswith("."):
        quoted = "%2E" + quoted[1:]
    if len(quoted) > MAX_ID:
        return f"{quoted[:KEPT]}~{hashlib.sha256(raw).hexdigest()[:12]}"
    return quoted or "%"


def task_name(identity: str, part: int) -> str:
    """Return the key-safe name of a task: the escaped identity, then "~" and four digits for a part.

    No escaped identity ends in "~" and four digits.
    """
    return f"{escape(identity)}~{part:04d}" if part else escape(identity)


def stem(uri: str) -> str:
    """Return the escaped file name of a key or URI, without its extension."""
    return escape(PurePosixPath(uri.rsplit("/", 1)[-1]).stem)


def key_fault(key: str) -> str | None:
    """Return why `key` is no valid storage key, or None for a relative POSIX path that stays under the prefix."""
    if not key:
        return "it is empty"
    if "\0" in key or "\\" in key:
        return "it holds a NUL or a backslash"
    if key.startswith("/"):
        return "it is absolute"
    if any(part in f"/{key}/" for part in ("//", "/./", "/../")):
        return 'it has an empty, "." or ".." part'
    return None if is_utf8(key) else "it is not UTF-8"


def is_utf8(text: str) -> bool:
    """Return whether a text can be encoded; Python decodes bytes that are not UTF-8 to lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(text: str) -> str:
    """Return `text` for one line of a message: without secrets, unprintable characters as escapes."""
    line = redacted(text)
    if line.isprintable():  # nearly always
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def short(text: str, most: int = MAX_SHOWN) -> str:
    """Return `shown(text)` cut to at most `most` characters; the beginning and the end are kept."""
    line = shown(text)
    return line if len(line) <= most else f"{line[: most - most // 4 - 3]}...{line[-(most // 4) :]}"


def redacted(text: str) -> str:
    """Return `text` with its secrets replaced by "***".

    Secrets are the user and password of any URL, the query values that authorise a request (presigned addresses,
    tokens), and AWS access key ids.
    """
    if "@" in text:
        text = _USER.sub(r"\1***@", text)
    if "=" in text:
        text = _QUERY.sub(r"\1***", text)
    return _KEY_ID.sub("***", text)


def redact_logs() -> None:
    """Redact every log record of this program and its traceback, for all handlers.

    A record factory is needed: filters on the loggers "pipeline" and "dladiff" do not apply to their child loggers.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def record(name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make(name, *args, **kwargs)
        if name.partition(".")[0] in PROGRAM:
            made.msg, made.args = redacted(made.getMessage()), ()
            if made.exc_info:
                made.exc_text = redacted(logging.Formatter().formatException(made.exc_info))
        return made

    record.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
