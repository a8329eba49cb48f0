"""Decode photos in separate processes (`pipeline.sources.decoder`), which can be killed."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import LifoQueue
from typing import IO, Any, Protocol

import numpy as np

from dladiff.core.arrays import Pixels
from dladiff.errors import ModelError, PhotoError
from pipeline.sources.decode import Decoded
from pipeline.sources.decoder import HELLO, receive, send

HELLO_S = 300  # seconds to start: imports may come from a slow network disk on a busy machine
END_S = 5  # seconds to end after its input is closed
PIPE = 2**20  # bytes of a pipe, where supported: the default of 64 KiB halves the speed
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "TMPDIR")
"""Environment variables that a decoder inherits: none with credentials."""
CODE = "from pipeline.sources.decoder import serve; serve()"


class Limits(Protocol):
    """A run's limits of one photo (`RunConfig`)."""

    @property
    def max_pixels(self) -> int:
        """Most pixels."""
        ...

    @property
    def max_scans(self) -> int:
        """Most scans of a JPEG."""
        ...

    @property
    def max_photo_seconds(self) -> float:
        """Most seconds to decode."""
        ...


class Decoders:
    """A pool of at most `count` decoder processes, started on demand; thread-safe.

    Leaving the context, or `end`, ends the processes.
    """

    def __init__(self, limits: Limits, count: int) -> None:
        self._limits = limits
        self._count = count
        self._idle: LifoQueue[_Decoder | None] = LifoQueue()  # last in, first out: starts no more processes than needed
        for _ in range(count):
            self._idle.put(None)

    def __enter__(self) -> "Decoders":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self.end()

    def dimensions(self, data: bytes) -> tuple[int, int]:
        """Return width and height, px, like `decode.dimensions`. Raises PhotoError."""
        reply, _ = self._exchange({"do": "dimensions"}, data)
        return int(reply["width"]), int(reply["height"])

    def decode(self, data: bytes, pixels: int) -> Decoded:
        """Decode a photo like `decode.decode`. Raises PhotoError, also if it does not have `pixels` pixels."""
        reply, arrays = self._exchange({"do": "decode", "pixels": pixels}, data)
        icc = bytes(arrays["icc"]) if "icc" in arrays else None
        return Decoded(pixels=arrays["pixels"], alpha=arrays.get("alpha"), icc=icc, note=str(reply["note"]))

    def end(self) -> None:
        """End the processes; the next photo starts new ones. Call it only while no photo is decoded."""
        for _ in range(self._count):
            if decoder := self._idle.get():
                decoder.end()
        for _ in range(self._count):
            self._idle.put(None)

    def _exchange(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], dict[str, Pixels]]:
        limits = self._limits
        request |= {"max_pixels": limits.max_pixels, "max_scans": limits.max_scans, "bytes": len(data)}
        decoder = self._idle.get()
        try:
            decoder = decoder or _Decoder()
            return decoder.exchange(request, data, limits.max_photo_seconds)
        finally:
            self._idle.put(decoder if decoder and decoder.alive else None)


class _Decoder:
    """One process, used by one thread at a time."""

    def __init__(self) -> None:
        kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        path = os.pathsep.join(str(Path(folder).absolute()) for folder in sys.path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", CODE],  # -P: the working folder is not on the module path
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # libtiff and libjpeg print warnings
                env=kept | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C in the terminal must not end it
            )
        except OSError as error:
            raise ModelError(f"no decoder process starts here: {error.strerror or error}") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.alive, self._late = True, False
        for pipe in (self._in, self._out):
            with contextlib.suppress(AttributeError, OSError):  # AttributeError: not on macOS
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)
        hello = b""
        with contextlib.suppress(EOFError), self._within(HELLO_S):
            hello = self._out.read(len(HELLO))
        if hello != HELLO:
            self.end()
            code = self._process.returncode
            raise ModelError(
                f"no decoder process starts here (exit code {code}); try `{sys.executable} -P -c '{CODE}'`"
            )

    def exchange(
        self, request: dict[str, Any], data: bytes, seconds: float
    ) -> tuple[dict[str, Any], dict[str, Pixels]]:
        """Return the header and arrays of the reply. Raises PhotoError, also when the process ends."""
        request["seconds"] = seconds
        try:
            with self._within(seconds):
                send(self._in, request)
                self._in.write(data)
                self._in.flush()
                reply = receive(self._out)
                arrays = _arrays(self._out, reply, request.get("pixels", 0))
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:  # it died or replied nonsense
            self.end()
            raise PhotoError(self._why(seconds)) from error
        except BaseException:
            self.end()
            raise
        if "fault" in reply:
            raise PhotoError(str(reply["fault"]))
        return reply, arrays

    def end(self) -> None:
        """End the process, with SIGKILL if it does not end by itself."""
        self.alive = False
        with contextlib.suppress(OSError):
            self._in.close()
        try:
            self._process.wait(0 if self._late else END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()

    @contextlib.contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        """Kill the process after `seconds` and raise EOFError; readers of its pipe see the end of file."""
        timer = threading.Timer(seconds, self._kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # a timer that just fired must not kill the next photo's decoding
        if self._late:
            raise EOFError("killed")

    def _kill(self) -> None:
        self._late = True
        self._process.kill()

    def _why(self, seconds: float) -> str:
        code = self._process.returncode
        if self._late or code == -signal.SIGXCPU:
            return f"decoding takes more than max_photo_seconds = {seconds:g}; save it again as JPEG or PNG"
        return f"decoding it ended the decoder process (exit code {code}); save it again as JPEG or PNG"


def _arrays(file: IO[bytes], reply: Mapping[str, Any], pixels: int) -> dict[str, Pixels]:
    """Read the arrays after a reply. Raises PhotoError when the size is not `pixels` pixels."""
    if "note" not in reply:
        return {}
    height, width = int(reply["height"]), int(reply["width"])
    if height * width != pixels or min(height, width) < 1:
        raise PhotoError("its header and its pixels have different sizes; save it again as JPEG or PNG")
    found = {"pixels": _filled(file, (height, width, 3))}
    if reply["alpha"]:
        found["alpha"] = _filled(file, (height, width))
    if reply["icc"]:
        found["icc"] = _filled(file, (int(reply["icc"]),))
    return found


def _filled(file: IO[bytes], shape: tuple[int, ...]) -> Pixels:
    array = np.empty(shape, np.uint8)
    view = memoryview(array.data).cast("B")
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the decoder ended")
        view = view[count:]
    return array
