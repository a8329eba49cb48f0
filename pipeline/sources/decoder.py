"""The process that decodes: one photo after another from its input, each within a time and a memory limit.

A request is a JSON header with its length before it, and the file's bytes. A reply is a JSON header and raw pixels.
Nothing is unpickled: a file that took over a decoder could only change its own pixels.
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
from pipeline.sources.decode import decode, dimensions

PIXEL_BYTES = 32  # bytes a pixel that decoding may take: measured are 8 to 25 (docs/decisions/0012-bounded-photos.md)
FILE_BYTES = 3  # bytes per byte of the file: itself, and what Pillow copies of it
SPARE = 128 * 2**20  # bytes that any file may take: tables, profiles, small images
HELLO = b"ok\n"


def serve() -> None:
    """Decode what comes on stdin until it is closed; replies go to stdout, and nothing else does."""
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
    """Do one request within its limits."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = used.ru_utime + used.ru_stime
    _limit(resource.RLIMIT_CPU, math.ceil(spent + request["seconds"]) + 1)  # whoever asked may be dead
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
    """Lower the soft limit of this process, or raise it again as far as the hard one allows."""
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(kind)[1]
        finite = [limit for limit in (most, hard) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(kind, (min(finite, default=resource.RLIM_INFINITY), hard))


def _address_space() -> int:
    """Bytes of address space of this process; 0 where the system does not tell, which has no such limit either."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return 0
    return pages * resource.getpagesize()


def send(file: IO[bytes], header: Mapping[str, Any]) -> None:
    """Write a header with its length before it."""
    text = json.dumps(header).encode()
    file.write(len(text).to_bytes(4, "big") + text)


def receive(file: IO[bytes]) -> dict[str, Any]:
    """Read a header. Raises EOFError at the end of the file, ValueError for what is none."""
    length = file.read(4)
    text = file.read(int.from_bytes(length, "big"))
    if len(length) < 4 or not text:
        raise EOFError("the other side ended")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("not a header")
    return header
