"""One photo of any shape: what its views keep of layer 1, and its file."""

import io

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from dladiff.core import tiles
from dladiff.core.arrays import Pixels
from dladiff.core.exchange import PhotoIn
from dladiff.core.field import Field
from dladiff.core.pixels import to_float, to_uint8
from dladiff.photo import Work
from dladiff.protect import protect
from dladiff.service import Protector
from dladiff.settings.schema import MethodConfig, method_config
from tests.golden.make_tiny import SETTINGS
from tests.golden.make_tiny import photo as portrait

pytestmark = pytest.mark.networks
QUICK = {"iter_ft": 2, "iter_opt": 3}


@pytest.fixture(scope="module")
def protector() -> Protector:
    return Protector(SETTINGS, seed=0, threads=1)


def config(**changes: object) -> MethodConfig:
    return method_config("tiny", None, {"layers": "finetuning", "visibility": 0, "finetuning": QUICK, **changes})


def tall() -> Pixels:
    return np.ascontiguousarray(skimage.data.astronaut()[:320, 80:320])


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("output", ["png", "jpeg"])
def test_every_view_of_a_photo_that_is_not_square_keeps_what_was_optimised(
    protector: Protector, turned: bool, output: str
) -> None:
    """The views are cut from the stored file by Pillow; the manifest's `retained` is the smallest of their shares."""
    photo = np.ascontiguousarray(tall().swapaxes(0, 1)) if turned else tall()
    settings = config(region="photo", output={"format": output})
    (out,) = protect([PhotoIn(key="a", pixels=photo)], [], protector.models, settings, seed=0).photos
    work = Work.of(PhotoIn(key="a", pixels=photo), protector.models.detector, protector.models.device, settings)
    names = [view.name for view in work.views]
    assert names[0] == "middle" and {"whole", "square 2"} <= set(names) and len(names) == 4
    stored = Image.open(io.BytesIO(out.codec.encode(out.pixels))).convert("RGB")
    for view in work.views:
        box, size = (view.x, view.y, view.x + view.width, view.y + view.height), (128, 128)
        before, after = (
            np.asarray(image.crop(box).resize(size, Image.Resampling.BILINEAR)).astype(float)
            for image in (Image.fromarray(photo), stored)
        )
        moved = np.sqrt(np.square(after - before).mean())
        assert moved > 1.2, (view, moved)  # grey levels: three epochs of steps of 0.64
    assert out.retained > 0.75 and out.linf > 4 / 255


def test_retained_is_small_where_views_do_not_show_what_was_optimised(protector: Protector) -> None:
    settings = config(region="photo")
    work = Work.of(PhotoIn(key="a", pixels=tall()), protector.models.detector, protector.models.device, settings)
    work.start(settings)
    assert isinstance(work.perturbation, Field)
    signs = torch.rand(work.perturbation.cells.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    work.perturbation.cells = signs.sign() * 7 / 255
    good = work.retained(settings)
    field, real = work.perturbation, work.perturbation.views()
    work.perturbation.views = lambda: torch.roll(real, 5, dims=-1)  # type: ignore[method-assign]
    assert good > 0.9 and work.retained(settings) < 0.2
    work.perturbation.views = lambda: real  # type: ignore[method-assign]
    shares = []
    stored = to_float(to_uint8(work.original() + field.at_full_size()))
    for view, optimised in zip(work.views, real, strict=True):
        found = view.read(stored, 128) - view.read(work.original(), 128)
        shares.append(tiles.retained(optimised[None], found))
    assert work.retained(settings) == pytest.approx(min(shares), abs=1e-5)


def test_overlapping_face_squares_are_one_field() -> None:
    class Two:
        def detect(self, rgb: Pixels) -> list[object]:
            return [Face(40), Face(70)]

    class Face:
        def __init__(self, x: float) -> None:
            self.landmarks = tiles.TEMPLATE * 100 + np.array([x, 40.0])
            self.box = (x, 40.0, x + 100, 140.0)

    work = Work.of(PhotoIn(key="a", pixels=tall()), Two(), torch.device("cpu"), config())  # type: ignore[arg-type]
    work.start(config())
    assert isinstance(work.perturbation, Field) and len(work.views) == 2


@pytest.mark.parametrize("output", ["png", "jpeg"])
def test_both_layers_of_a_grey_photo_stay_grey(protector: Protector, output: str) -> None:
    grey = np.repeat(portrait().mean(2).astype(np.uint8)[:, :, None], 3, axis=2)
    settings = config(layers="both", output={"format": output}, zero_shot={"max_steps": 10, "step_size": 4e-3})
    photo = PhotoIn(key="a", pixels=grey, file_bytes=60_000)
    (out,) = protect([photo], [], protector.models, settings, seed=0).photos
    assert out.status == "protected" and (out.pixels == out.pixels[:, :, :1]).all()
    data = out.codec.encode(out.pixels)
    assert Image.open(io.BytesIO(data)).mode == "L" and len(data) <= 1.3 * 60_000
    optimised = [s for s in out.similarity if s["optimised"]]
    assert optimised[0]["after"] < optimised[0]["before"] - 0.3


def test_transparency_is_kept_in_a_png(protector: Protector) -> None:
    settings = config(output={"format": "jpeg"})
    photo = PhotoIn(key="a", pixels=portrait(), transparent=True)
    (out,) = protect([photo], [], protector.models, settings, seed=0).photos
    assert out.codec.format == "png" and "stored as PNG" in out.reason
