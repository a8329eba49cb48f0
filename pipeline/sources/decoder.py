"""The decoder process: decodes photos from stdin one after another, each within a time and memory limit.

A request is a JSON header, preceded by its length, and the file's bytes. A reply is a JSON header and raw pixels.
Nothing is unpickled: a file that takes over a decoder can only change its own pixels.
"""

import contextlib
import json
import math
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from dladiff.errors import PhotoError
from pipeline.sources.decode import decode, dimensions, prepare

PIXEL_BYTES = 32  # bytes a pixel allowed for decoding; measured 8 to 25 (docs/decisions/0012-bounded-photos.md)
FILE_BYTES = 3  # bytes per byte of the file: the file and Pillow's copies
SPARE = 128 * 2**20  # bytes allowed for every file: tables, profiles, small images
HELLO = b"ok\n"


def serve() -> None:
    """Decode requests from stdin until it is closed; only replies go to stdout."""
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _limit(resource.RLIMIT_CORE, 0)  # a core file would hold a person's photo
    target.write(HELLO)
    target.flush()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            request = receive(source)
            data = source.read(request["bytes"])
            reply, arrays = _answer(request, data)
            del data
            send(target, reply)
            for array in arrays:
                target.write(memoryview(array).cast("B"))
            target.flush()
            del arrays


def _answer(request: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], list[Any]]:
    """Return the header and the arrays of the reply to one request."""
    prepare(data)
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = used.ru_utime + used.ru_stime
    _limit(resource.RLIMIT_CPU, math.ceil(spent + request["seconds"]) + 1)  # the parent process may be dead
    pixels = request.get("pixels", 0)
    if size := _address_space():
        _limit(resource.RLIMIT_AS, size + PIXEL_BYTES * pixels + FILE_BYTES * len(data) + SPARE)
    settings = {"max_pixels": request["max_pixels"], "max_scans": request["max_scans"]}
    try:
        if request["do"] == "dimensions":
            width, height = dimensions(data, **settings)
            return {"width": width, "height": height}, []
        done = decode(data, **settings)
    except PhotoError as error:
        return {"fault": str(error)}, []
    except MemoryError:
        return {"fault": "not enough memory to decode it; save it again as JPEG or PNG"}, []
    finally:
        _limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)  # for the bytes of the next file
    height, width = done.pixels.shape[:2]
    arrays = [done.pixels, *([] if done.alpha is None else [done.alpha]), *([] if done.icc is None else [done.icc])]
    about = {"width": width, "height": height, "alpha": done.alpha is not None, "icc": len(done.icc or b"")}
    return about | {"note": done.note}, arrays


def _limit(kind: int, most: int) -> None:
    """Set a soft limit of this process, at most to the hard limit."""
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(kind)[1]
        finite = [limit for limit in (most, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(kind, (min(finite, default=resource.RLIM_INFINITY), hard))


def _address_space() -> int:
    """Return the address space of this process in bytes; 0 on systems without /proc, which have no such limit."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return 0
    return pages * resource.getpagesize()


def send(file: IO[bytes], header: Mapping[str, Any]) -> None:
    """Write the length of a JSON header, then the header."""
    text = json.dumps(header).encode()
    file.write(len(text).to_bytes(4, "big") + text)


def receive(file: IO[bytes]) -> dict[str, Any]:
    """Read a header. Raises EOFError at the end of the file, ValueError for anything else."""
    length = file.read(4)
    text = file.read(int.from_bytes(length, "big"))
    if len(length) < 4 or not text:
        raise EOFError("the other process ended")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("not a header")
    return header
