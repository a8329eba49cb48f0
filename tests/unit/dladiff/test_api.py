"""The Python interface: inputs, results, errors, and the example of docs/python.md."""

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from dladiff import api
from dladiff.api import protect_photos
from dladiff.errors import ConfigError, PhotoError
from pipeline.sources.decode import decode
from tests.support.fakes import AddNoise
from tests.support.photo_bytes import grey_profile

PAGE = Path(__file__).resolve().parents[3] / "docs" / "python.md"


class Spy(AddNoise):
    """Adds one grey level and stores its arguments."""

    calls: list[Any] = []  # noqa: RUF012

    def __init__(self, settings: Mapping[str, Any], seed: int, threads: int) -> None:
        super().__init__(settings, seed, threads)
        self.calls.append((settings, seed))

    def protect_identity(self, identity: str, photos: Sequence[Any], clean: Sequence[Any]) -> Any:
        self.calls.append((identity, len(photos), len(clean)))
        return super().protect_identity(identity, photos, clean)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Spy]]:
    monkeypatch.setattr(api, "Protector", Spy)
    Spy.calls = []
    api._protector.cache_clear()
    yield Spy
    api._protector.cache_clear()


def pixels(height: int = 70, width: int = 90) -> np.ndarray:
    ramp = np.arange(height * width * 3) % 250
    return ramp.astype(np.uint8).reshape(height, width, 3)


def test_arrays_and_images_give_the_same(spy: type[Spy]) -> None:
    one, two = protect_photos([pixels(), Image.fromarray(pixels())])
    assert np.array_equal(np.asarray(one.image), pixels() + 1)
    assert np.array_equal(np.asarray(two.image), pixels() + 1)
    assert (one.status, one.psnr, one.image.mode) == ("protected", pytest.approx(20 * np.log10(255)), "RGB")
    assert (one.ssimulacra2, one.ssimulacra2_face) == (90.0, 80.0)
    assert one.similarity == [api.Similarity(encoder="fake", optimised=True, before=1.0, after=0.1)]


def test_settings_reach_the_protector_and_models_stay(spy: type[Spy]) -> None:
    for _ in range(2):
        protect_photos(
            [pixels()],
            clean=[pixels(), pixels()],
            seed=3,
            encoders=["a.onnx"],
            settings={"zero_shot": {"threshold": 0.2}},
        )
    overrides = {"encoders": ["a.onnx"], "zero_shot": {"threshold": 0.2}}
    built = ({"profile": "tiny", "preset": None, "overrides": overrides}, 3)
    assert spy.calls == [built, ("", 1, 2), ("", 1, 2)]


def test_a_strength_is_a_preset_and_two_are_refused(spy: type[Spy]) -> None:
    protect_photos([pixels()], strength="faint")
    assert spy.calls[0][0]["preset"] == "faint"
    wrong: Any
    for wrong in ("fain", "paper", ["faint"], 3):
        with pytest.raises(ConfigError, match=r"strength: .* is unknown; known: faint, balanced, strong"):
            protect_photos([pixels()], strength=wrong)
    with pytest.raises(ConfigError, match="strength: 'faint' and preset: 'paper' contradict"):
        protect_photos([pixels()], strength="faint", preset="paper")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_in_the_batch(spy: type[Spy], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels()).save(out, "PNG", exif=exif)
    expected = decode(out.getvalue()).pixels
    (result,) = protect_photos([Image.open(io.BytesIO(out.getvalue()))])
    assert np.array_equal(np.asarray(result.image), expected + 1)


def test_transparency_and_colour_profile_are_kept(spy: type[Spy]) -> None:
    alpha = np.full((70, 90), 120, np.uint8)
    image = Image.fromarray(np.dstack([pixels(), alpha]))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.info["icc_profile"] = profile
    (result,) = protect_photos([image])
    assert result.image.mode == "RGBA"
    assert np.array_equal(np.asarray(result.image)[:, :, 3], alpha)
    assert result.image.info["icc_profile"] == profile
    image.info["icc_profile"] = profile[:16] + b"GRAY" + profile[20:]  # of other pixels: the batch drops it too
    (result,) = protect_photos([image])
    assert "icc_profile" not in result.image.info
    assert result.reason == "its colour profile does not fit its pixels and was left out"


@pytest.mark.parametrize("kind", ["L", "LA", "I;16"])
def test_a_grey_profile_is_applied_as_in_the_batch(spy: type[Spy], kind: str) -> None:
    grey = Image.fromarray(pixels()[:, :, 0])
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if kind == "I;16" else grey.convert(kind)
    file = io.BytesIO()
    image.save(file, "PNG", icc_profile=grey_profile(1.75))
    (result,) = protect_photos([Image.open(file)])
    expected = decode(file.getvalue()).pixels
    assert np.array_equal(np.asarray(result.image)[:, :, :3], expected + 1)
    assert (np.abs(expected.astype(int) - pixels()[:, :, :1]) > 5).any() and "icc_profile" not in result.image.info


def test_sixteen_bits_are_scaled_not_clipped(spy: type[Spy]) -> None:
    wide = Image.fromarray(np.full((64, 64), 257 * 100, np.uint16))
    (result,) = protect_photos([wide])
    assert np.unique(np.asarray(result.image)).tolist() == [101]


@pytest.mark.parametrize(
    ("photos", "words"),
    [
        ([], "photos: is empty; give at least one"),
        (Image.new("RGB", (64, 64)), "give a list of photos, not one Image"),
        (pixels(), "give a list of photos, not one ndarray"),
        ("photo.jpg", "give a list of photos, not one str"),
        (7, "give a list of photos, not one int"),
        (["photo.jpg"], r"photos\[0\]: expected a PIL image or a uint8 array .* not str"),
        ([pixels(), pixels().astype(np.float32)], r"photos\[1\]: .* not float32 \(70, 90, 3\)"),
        ([pixels()[:, :, 0]], r"not uint8 \(70, 90\)"),
        ([pixels(63, 90)], r"photos\[0\]: 90 x 63 px is too small; each side needs at least 64 px"),
        ([Image.new("CMYK", (64, 64))], r'mode CMYK is not supported; convert it with image.convert\("RGB"\)'),
    ],
)
def test_faults_are_one_line_that_names_the_photo(spy: type[Spy], photos: Any, words: str) -> None:
    with pytest.raises(PhotoError, match=words) as caught:
        protect_photos(photos)
    assert "\n" not in str(caught.value)
    assert spy.calls == []


def test_a_truncated_file_is_named(spy: type[Spy]) -> None:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)).save(out, "JPEG")
    with pytest.raises(PhotoError, match=r"clean\[0\]: cannot be decoded \(OSError\); copy it again"):
        protect_photos([pixels()], clean=[Image.open(io.BytesIO(out.getvalue()[:900]))])


def test_wrong_settings_list_every_fault() -> None:
    with pytest.raises(ConfigError, match=r"did you mean tiny.*layerz: unknown setting \(did you mean layers"):
        protect_photos([pixels()], profile="tinny", settings={"layerz": 1})


def test_the_example_runs(spy: type[Spy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(example) == 1
    monkeypatch.chdir(tmp_path)
    for name in ("ann_1.jpg", "ann_2.jpg"):
        Image.fromarray(pixels()).save(name)
    exec(compile(example[0], str(PAGE), "exec"), {})
    assert sorted(os.listdir()) == ["ann_0.png", "ann_1.jpg", "ann_1.png", "ann_2.jpg"]  # noqa: PTH208


@pytest.mark.slow
def test_the_tiny_profile_protects_a_face() -> None:
    import skimage.data

    portrait = skimage.data.astronaut()[0:240, 100:340]
    quick = {"finetuning": {"iter_ft": 4, "iter_opt": 1}, "zero_shot": {"max_steps": 60}}
    (result,) = protect_photos([portrait], settings=quick)
    assert result.status == "protected"
    change = np.abs(np.asarray(result.image).astype(int) - portrait)
    assert 0 < change.max() <= 18
    assert change.max() == round(result.linf * 255)
    optimised = [s for s in result.similarity if s.optimised]
    assert all(s.after < s.before - 0.3 for s in optimised)
