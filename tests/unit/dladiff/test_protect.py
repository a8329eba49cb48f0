import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch

from dladiff.core import visibility
from dladiff.core.exchange import PhotoIn
from dladiff.core.pixels import whole_levels
from dladiff.diffusion.trainer import Trainer
from dladiff.faces.detect import warp
from dladiff.layers.finetuning import _Ascent
from dladiff.layers.stop_rule import still_above
from dladiff.layers.zero_shot import AlignedGrid, Box, ImageGrid, half_crop_pixel, pasted
from dladiff.protect import protect
from dladiff.service import Protector
from dladiff.settings.schema import method_config
from tests.golden.make_tiny import GOLDEN, SETTINGS, photo, run, summary

pytestmark = pytest.mark.networks


@pytest.fixture(scope="module")
def protector() -> Protector:
    return Protector(SETTINGS, seed=0, threads=1)


def pieces() -> list[PhotoIn]:
    plain = np.ascontiguousarray(skimage.data.coffee()[:128, :160])
    return [PhotoIn(key="face", pixels=photo()), PhotoIn(key="mirror", pixels=np.ascontiguousarray(photo()[:, ::-1])),
            PhotoIn(key="no face", pixels=plain)]  # fmt: skip


def test_golden_run() -> None:
    found, golden = summary(run()), json.loads(GOLDEN.read_text())
    assert found["status"] == golden["status"] == "protected"
    assert found["linf"] == pytest.approx(golden["linf"], abs=1.5 / 255)
    assert found["psnr"] == pytest.approx(golden["psnr"], abs=0.3)
    assert found["psnr_face"] == pytest.approx(golden["psnr_face"], abs=0.3)
    for encoder, value in golden["similarity"].items():
        assert found["similarity"][encoder] == pytest.approx(value, abs=0.1)
    assert np.allclose(found["thumbnail"], golden["thumbnail"], atol=0.4)


def test_same_seed_same_bytes_in_any_order(protector: Protector) -> None:
    photos = pieces()
    forward = protector.protect_identity("a", photos, [])
    protector.protect_identity("another identity in between", photos[:1], [])
    backward = protector.protect_identity("b", photos[::-1], [])
    for out, again in zip(forward.photos, backward.photos[::-1], strict=True):
        assert out.key == again.key
        assert np.array_equal(out.pixels, again.pixels)
    other = protect(photos[:1], [], protector.models, protector.config, seed=1)
    assert not np.array_equal(other.photos[0].pixels, forward.photos[0].pixels)

    faced, _, bare = forward.photos
    assert faced.status == "protected" and bare.status == "layer1_only"
    for out, taken in zip(forward.photos, photos, strict=True):
        boxes = [tuple(face["box"]) for face in out.faces]
        assert out.ssimulacra2 == visibility.ssimulacra2(taken.pixels, out.pixels) < 100
        found = visibility.ssimulacra2_of_faces(taken.pixels, out.pixels, boxes)
        assert out.ssimulacra2_face == found if boxes else np.isnan(out.ssimulacra2_face)
    assert "no face" in bare.reason and bare.similarity == [] and bare.linf <= 7 / 255 + 1e-9
    assert faced.linf <= 18 / 255 + 1e-9 and faced.retained > 0.8
    assert {s["optimised"] for s in faced.similarity} == {True, False}


def test_a_bound_between_two_grey_levels_holds_after_rounding(protector: Protector) -> None:
    short = {"finetuning": {"eta": 7.7 / 255, "iter_ft": 0, "iter_opt": 4}, "zero_shot": {"eta": 0.03, "max_steps": 5}}
    config = method_config("tiny", None, {"visibility": 0, **short})
    (out,) = protect(pieces()[:1], [], protector.models, config, seed=0).photos
    assert out.linf <= 14 / 255 + 1e-9
    assert whole_levels(7.7 / 255) == whole_levels(7 / 255) == 7 / 255


def test_overlapping_faces_are_checked_again() -> None:
    class Rule:
        def __init__(self, value: float) -> None:
            self.value, self.calls = value, 0

        def __call__(self, photo: object) -> list[float]:
            self.calls += 1
            return [0.0, self.value]

    config = method_config("tiny", None, {}).zero_shot
    boxes = [Box(0, 0, 10, 10), Box(9, 9, 20, 20), Box(20, 9, 30, 20), Box(0, 12, 9, 20)]
    rules: list[Any] = [Rule(value) for value in (0.5, 0.5, 0.5, 0.0)]
    steps = [3, 3, config.max_steps, config.max_steps]
    lines = still_above(list(zip(rules, boxes, steps, strict=True)), torch.zeros(1, 3, 30, 30), config)
    assert [line.split(":")[0] for line in lines] == ["face 1", "face 2", "face 3"]
    assert "3 steps and those of a face that overlaps it" in lines[0] and lines[2].endswith(f"{config.max_steps} steps")
    assert [rule.calls for rule in rules] == [1, 1, 1, 1]
    far = [Box(0, 0, 10, 10), Box(20, 20, 30, 30)]
    rules = [Rule(0.5), Rule(0.5)]
    assert still_above(list(zip(rules, far, [3, 3], strict=True)), torch.zeros(1, 3, 30, 30), config) == []
    assert [rule.calls for rule in rules] == [0, 0]  # below the threshold and without overlap: not checked again


def test_a_trace_holds_every_step_and_changes_no_byte(protector: Protector) -> None:
    config, one = protector.config, pieces()[:1]
    plain = protect(one, [], protector.models, config, seed=0)
    traced = protect(one, [], protector.models, config, seed=0, trace=True)
    assert np.array_equal(plain.photos[0].pixels, traced.photos[0].pixels)
    assert plain.trace == {}
    layer1, epochs = config.finetuning, config.finetuning.iter_opt
    lengths = {title: {len(values) for values in lines.values()} for title, lines in traced.trace.items()}
    assert lengths.pop("Layer 2, face") <= {traced.steps["zero_shot_layer"]["perturbation"] + more for more in (0, 1)}
    assert lengths == {
        "Layer 1, static surrogate": {layer1.iter_ft},
        "Layer 1, attention steps": {epochs * layer1.iter_1},
        "Layer 1, denoising steps": {epochs * layer1.iter_2},
        "Layer 1, dynamic surrogate": {(epochs - 1) * layer1.iter_3},
    }
    cosines = next(iter(traced.trace["Layer 2, face"].values()))
    assert cosines[0] > 0.7 and cosines[-1] < 0.5 * cosines[0]


def test_reported_steps_are_the_steps_taken(protector: Protector, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: Counter[str] = Counter()

    def counted(kind: type, name: str, size: Callable[..., int]) -> None:
        real = getattr(kind, name)

        def call(self: object, *args: object, **options: object) -> object:
            taken[name] += size(*args)
            return real(self, *args, **options)

        monkeypatch.setattr(kind, name, call)

    counted(Trainer, "step", lambda *_: 1)
    for loss in ("attention", "denoising"):
        counted(_Ascent, loss, lambda point, _: len(point))
    counted(ImageGrid, "align", lambda *_: 1)
    finetuning = protector.config.finetuning.replaced(iter_ft=2, iter_opt=2, iter_1=1, iter_2=2, iter_3=3)
    zero_shot = protector.config.zero_shot.replaced(max_steps=3)
    config = protector.config.replaced(finetuning=finetuning, zero_shot=zero_shot)
    done = protect(pieces()[:2], [], protector.models, config, seed=0)
    assert done.steps["static_surrogate"] == {"training": 2}
    assert done.steps["finetuning_layer"] == {"training": 3, "perturbation": 2 * 3 * 2}  # two squares
    assert taken["step"] == 2 + 3
    assert taken["attention"] + taken["denoising"] == 2 * 3 * 2
    assert done.steps["zero_shot_layer"] == {"perturbation": taken["align"]} == {"perturbation": 3 * 2}  # two faces
    assert done.steps.keys() == done.seconds.keys() - {"detect"}


@pytest.mark.parametrize("space", ["image", "aligned"])
def test_layer_2_lowers_every_optimised_similarity(protector: Protector, space: str) -> None:
    quiet = {"linear_noise": 0.005, "shift_noise": 0.5}  # the paper's small alignment noise
    zero_shot = protector.config.zero_shot.replaced(space=space, step_size=2e-3, max_steps=40, **quiet)
    config = protector.config.replaced(layers="zero_shot", zero_shot=zero_shot)
    (out,) = protect([PhotoIn(key="a", pixels=photo())], [], protector.models, config, seed=0).photos
    optimised = [s for s in out.similarity if s["optimised"]]
    assert [s["before"] > 0.99 and s["after"] < 0.4 for s in optimised] == [True], optimised
    assert out.linf <= 11 / 255 + 1e-9


@pytest.mark.parametrize(("kind", "tolerance"), [("aligned", 1e-5), ("image", 0.02)])
def test_the_loss_uses_the_crops_of_the_pasted_perturbation(kind: str, tolerance: float) -> None:
    grey, box = torch.full((1, 3, 120, 140), 0.5), Box(20, 15, 112, 108)
    matrices = np.array([[[1.1, 0.2, -20.0], [-0.2, 1.1, 10.0]], [[1.0, 0.1, -8.0], [-0.1, 1.0, 4.0]]])
    aligned = kind == "aligned"
    grid = AlignedGrid(box, matrices[0]) if aligned else ImageGrid(box, half_crop_pixel(matrices[0]))
    delta = torch.rand(1, 3, *grid.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    crops = torch.from_numpy(matrices).float()
    got = warp(pasted(grey, grid.paste(delta), box).expand(2, -1, -1, -1), crops)
    difference = (got - warp(grey.expand(2, -1, -1, -1), crops) - grid.align(delta, matrices)).abs()
    assert difference.mean() < tolerance and difference.max() < max(0.1, tolerance)
