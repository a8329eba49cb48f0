"""decoders: files that cost memory or minutes end at a limit, as their own fault, and no process is left."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dladiff.errors import ModelError, PhotoError
from pipeline.config import RunConfig
from pipeline.sources import decoders
from pipeline.sources.decode import decode
from pipeline.sources.decoders import Decoders
from tests.support.photo_bytes import grey_profile, many_scans, rgb, saved, smooth
from tests.support.processes import decoders_of

CONFIG = RunConfig(input="in", output="out")


def test_photos_come_back_as_this_process_decodes_them() -> None:
    both = rgb().convert("RGBA")
    both.putalpha(rgb().getchannel(0))
    files = [saved(rgb(), "JPEG", icc_profile=grey_profile(1)), saved(both, "PNG"), saved(rgb(), "WEBP")]
    with Decoders(CONFIG, 2) as pool, ThreadPoolExecutor(6) as threads:
        for data, found in zip(files * 4, threads.map(lambda f: pool.decode(f, 64 * 96), files * 4), strict=True):
            expected = decode(data)
            np.testing.assert_array_equal(found.pixels, expected.pixels)
            assert (found.icc, found.note) == (expected.icc, expected.note)
            assert (found.alpha is None) == (expected.alpha is None)
            if found.alpha is not None:
                np.testing.assert_array_equal(found.alpha, expected.alpha)
        assert pool.dimensions(files[0]) == (96, 64)
        assert 1 <= len(decoders_of()) <= 2
    assert decoders_of() == set()


def test_a_fault_is_the_photos_and_the_process_goes_on() -> None:
    with Decoders(CONFIG, 1) as pool:
        for data, line in ((b"no photo", "not an image"), (b"", "empty"), (many_scans(64, 200), "max_scans = 100")):
            with pytest.raises(PhotoError, match=line):
                pool.dimensions(data)
        first = decoders_of()
        with pytest.raises(PhotoError, match="different sizes"):
            pool.decode(saved(rgb(), "PNG"), 64 * 95)
        assert pool.decode(saved(rgb(), "PNG"), 64 * 96).pixels.shape == (64, 96, 3)
        assert len(first) == len(decoders_of()) == 1


def test_decoding_ends_by_its_time_limit() -> None:
    """2,000 scans over 12 megapixels: half a minute of work in 100 KB."""
    slow = many_scans(3500, 2000)
    limited = RunConfig(input="in", output="out", max_scans=10_000, max_photo_seconds=1)
    with Decoders(limited, 1) as pool:
        pixels = np.prod(pool.dimensions(slow))
        with pytest.raises(PhotoError, match="more than max_photo_seconds = 1;"):
            pool.decode(slow, int(pixels))
        assert decoders_of() == set()
        np.testing.assert_array_equal(pool.decode(saved(rgb(), "PNG"), 64 * 96).pixels, smooth())
    assert decoders_of() == set()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system tells no address space")
def test_decoding_ends_by_its_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 2 bytes a pixel, of the 14 that it takes, a photo of 16 megapixels fails and one of 1 megapixel does not."""
    monkeypatch.setattr(
        decoders, "CODE", "import pipeline.sources.decoder as d; d.PIXEL_BYTES, d.SPARE = 2, 2**25; d.serve()"
    )
    large, small = (saved(Image.new("RGB", (side, side)), "PNG") for side in (4000, 1000))
    with Decoders(CONFIG, 1) as pool:
        assert pool.decode(small, 1000 * 1000).pixels.shape == (1000, 1000, 3)
        with pytest.raises(PhotoError, match="not enough memory"):
            pool.decode(large, 4000 * 4000)
        assert pool.decode(small, 1000 * 1000).pixels.shape == (1000, 1000, 3)
        assert len(decoders_of()) == 1


def test_a_decoder_that_dies_takes_one_photo_with_it() -> None:
    with Decoders(CONFIG, 1) as pool:
        pool.dimensions(saved(rgb(), "PNG"))
        (pid,) = decoders_of()
        os.kill(pid, signal.SIGSEGV)
        with pytest.raises(PhotoError, match=r"ended the decoder process \(exit code -11\)"):
            pool.dimensions(saved(rgb(), "PNG"))
        assert pool.dimensions(saved(rgb(), "PNG")) == (96, 64)


def test_a_decoder_that_does_not_start_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "CODE", "import nothing_of_that_name")
    with Decoders(CONFIG, 1) as pool, pytest.raises(ModelError, match=r"no decoder process starts here \(exit code 1"):
        pool.dimensions(b"")


def test_a_decoder_gets_no_credentials_and_nothing_of_the_working_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    with Decoders(CONFIG, 1) as pool:
        assert pool.dimensions(saved(rgb(), "PNG")) == (96, 64)
        (pid,) = decoders_of()
        assert b"hidden" not in Path(f"/proc/{pid}/environ").read_bytes()
