"""Both layers under one visibility budget, on the tiny profile's real networks."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from dladiff.core import visibility
from dladiff.core.arrays import Pixels
from dladiff.core.exchange import PhotoIn, PhotoOut
from dladiff.layers.zero_shot import Box
from dladiff.photo import Work
from dladiff.protect import protect
from dladiff.service import Protector
from dladiff.settings.schema import MethodConfig
from tests.golden.make_tiny import photo

pytestmark = pytest.mark.networks

SHORT: dict[str, Any] = {"joint": {"steps": 40}}
FEW = 12
"""Steps of tests of the budget alone, which holds after any number."""


@pytest.fixture(scope="module")
def protector() -> Protector:
    return Protector({"profile": "tiny", "overrides": SHORT}, seed=0, threads=1)


def protected(protector: Protector, pixels: Pixels, config: MethodConfig, **photo_in: Any) -> PhotoOut:
    (out,) = protect([PhotoIn(key="a", pixels=pixels, **photo_in)], [], protector.models, config, seed=0).photos
    return out


def few(config: MethodConfig) -> MethodConfig:
    return config.replaced(joint=config.joint.replaced(steps=FEW))


@pytest.fixture(scope="module")
def at(protector: Protector) -> Callable[[float], PhotoOut]:
    """Return the portrait protected at a visibility, each computed once."""
    return functools.cache(lambda wanted: protected(protector, photo(), protector.config.replaced(visibility=wanted)))


def two_faces() -> Pixels:
    return np.ascontiguousarray(np.concatenate([photo(), photo()[:, ::-1]], axis=1))


@pytest.mark.parametrize("wanted", [60.0, 85.0])
def test_the_stored_photo_and_its_face_keep_the_budget(
    protector: Protector, at: Callable[[float], PhotoOut], wanted: float
) -> None:
    config, out = protector.config, at(wanted)
    assert wanted <= min(out.ssimulacra2, out.ssimulacra2_face) < wanted + 3  # used, not only kept
    assert visibility.ssimulacra2(photo(), out.pixels) == out.ssimulacra2
    assert out.status == "protected" and out.linf <= config.joint.eta + 1e-9 and out.retained > 0.7
    optimised = next(s for s in out.similarity if s["optimised"])
    assert optimised["before"] > 0.99 and optimised["after"] < (0.6 if wanted == 60 else 0.95)
    assert "allows no more" in out.reason or optimised["after"] <= config.zero_shot.threshold


def test_a_larger_budget_protects_more(at: Callable[[float], PhotoOut]) -> None:
    found = [(at(wanted).similarity[0]["after"], -at(wanted).psnr) for wanted in (85.0, 60.0)]
    assert found[1][0] < found[0][0] - 0.1 and found[1][1] > found[0][1]


def test_same_seed_same_bytes_in_any_order(protector: Protector) -> None:
    photos = [PhotoIn(key="a", pixels=photo()), PhotoIn(key="b", pixels=np.ascontiguousarray(photo()[:, ::-1]))]
    config = protector.config.replaced(joint=protector.config.joint.replaced(steps=6))
    forward, backward = (protect(some, [], protector.models, config, seed=0).photos for some in (photos, photos[::-1]))
    for out, again in zip(forward, backward[::-1], strict=True):
        assert out.key == again.key and np.array_equal(out.pixels, again.pixels)
    other = protect(photos[:1], [], protector.models, config, seed=1).photos[0]
    assert not np.array_equal(other.pixels, forward[0].pixels)


def test_what_the_stop_rule_does_not_need_is_given_back(protector: Protector) -> None:
    """Layer 2 alone, with a threshold that is reached at once: less visible than the budget allows."""
    zero_shot = protector.config.zero_shot.replaced(threshold=0.9)
    joint = protector.config.joint.replaced(steps=120)
    config = protector.config.replaced(layers="zero_shot", visibility=60.0, zero_shot=zero_shot, joint=joint)
    out = protected(protector, photo(), config)
    assert out.similarity[0]["after"] <= 0.9 and out.reason == ""
    assert min(out.ssimulacra2, out.ssimulacra2_face) > 64


def test_the_perturbation_fades_out_towards_its_edges_inside_the_photo(protector: Protector) -> None:
    wide = np.ascontiguousarray(np.pad(photo(), ((120, 120), (120, 120), (0, 0)), mode="edge"))
    config = few(protector.config)
    work = Work.of(PhotoIn(key="a", pixels=wide), protector.models.detector, torch.device("cpu"), config)
    (part,), out = work.parts(config), protected(protector, wide, config)
    box = part.box
    assert min(box.x0, box.y0) > 0 and box.x1 < wide.shape[1] and box.y1 < wide.shape[0]
    change = np.abs(out.pixels.astype(int) - wide).mean(2)[box.y0 : box.y1, box.x0 : box.x1]
    height, width = change.shape
    edge = np.concatenate([change[:3].ravel(), change[-3:].ravel(), change[:, :3].ravel(), change[:, -3:].ravel()])
    assert edge.mean() < 0.15 * change[height // 4 : -height // 4, width // 4 : -width // 4].mean()
    outside = np.abs(out.pixels.astype(int) - wide).sum() - np.abs(change * 3).sum()
    assert abs(outside) < 1


def test_a_small_photo_is_one_canvas(protector: Protector) -> None:
    small = np.array(Image.fromarray(photo()).resize((128, 128), Image.Resampling.LANCZOS))
    strip = np.concatenate([small, np.tile(small, (1, 4, 1))], 1)
    for pixels, whole in ((small, True), (strip, False)):
        work = Work.of(
            PhotoIn(key="a", pixels=pixels), protector.models.detector, torch.device("cpu"), protector.config
        )
        for part in work.parts(protector.config):
            assert (part.box == Box(0, 0, pixels.shape[1], 128)) is whole
    out = protected(protector, small, protector.config.replaced(layers="zero_shot"))
    assert 75 <= min(out.ssimulacra2, out.ssimulacra2_face) < 78


def test_every_face_is_protected_and_the_budget_holds_for_each(protector: Protector) -> None:
    out = protected(protector, two_faces(), protector.config)
    assert len(out.faces) == 2
    boxes = [tuple(face["box"]) for face in out.faces]
    for box in boxes:
        assert visibility.ssimulacra2_of_faces(two_faces(), out.pixels, [box]) >= protector.config.visibility
    assert out.similarity[0]["after"] < 0.95  # the highest of both


def test_a_whole_photo_is_perturbed_for_layer_1_and_its_face_for_both(protector: Protector) -> None:
    tall = np.ascontiguousarray(np.concatenate([photo(), skimage.data.coffee()[:128, :256]]))
    config = few(protector.config.replaced(region="photo"))
    work = Work.of(PhotoIn(key="a", pixels=tall), protector.models.detector, torch.device("cpu"), config)
    whole, face = work.parts(config)
    assert (whole.box.y1, whole.box.x1) == tall.shape[:2] and whole.face is None and len(whole.views) >= 3
    assert face.face == 0 and [view.name for view in face.views] == ["face 1"]
    out = protected(protector, tall, config)
    change = np.abs(out.pixels.astype(int) - tall).mean(2)
    assert change[280:].mean() > 0.2 and out.status == "protected" and out.ssimulacra2 >= config.visibility


@pytest.mark.parametrize(("layers", "status"), [("both", "layer1_only"), ("zero_shot", "failed")])
def test_a_photo_without_a_face(protector: Protector, layers: Any, status: str) -> None:
    coffee = np.ascontiguousarray(skimage.data.coffee()[:128, :160])
    out = protected(protector, coffee, few(protector.config.replaced(layers=layers)))
    assert out.status == status and "no face" in out.reason and np.isnan(out.ssimulacra2_face)
    assert np.array_equal(out.pixels, coffee) == (layers == "zero_shot")
    assert out.ssimulacra2 >= protector.config.visibility


def test_layer_1_alone_moves_the_latents_and_needs_no_encoder(protector: Protector) -> None:
    config = few(protector.config.replaced(layers="finetuning"))
    work = Work.of(PhotoIn(key="a", pixels=photo()), protector.models.detector, torch.device("cpu"), config)
    assert [part.face for part in work.parts(config)] == [None]
    out = protected(protector, photo(), config)
    with torch.no_grad():
        before, after = (
            protector.models.vaes[0].vae.encode(work.views[0].read(x, config.resolution)).mean
            for x in (work.original(), torch.from_numpy(out.pixels.copy()).permute(2, 0, 1)[None].float() / 255)
        )
    assert float((after - before).square().mean() / before.var()) > 0.01
    assert out.status == "layer1_only" and out.ssimulacra2 >= config.visibility


@pytest.mark.parametrize("grey", [True, False])
def test_a_jpeg_keeps_the_budget_in_what_a_reader_decodes(protector: Protector, grey: bool) -> None:
    pixels = np.repeat(photo().mean(2, keepdims=True).astype(np.uint8), 3, 2) if grey else photo()
    config = few(protector.config.replaced(output=protector.config.output.replaced(format="jpeg")))
    out = protected(protector, pixels, config)
    stored = out.codec.stored(out.pixels)
    assert visibility.ssimulacra2(pixels, stored) == out.ssimulacra2 >= config.visibility
    assert not grey or np.ptp(out.pixels.astype(int), axis=2).max() == 0


def test_a_large_face_has_a_coarser_perturbation_and_the_same_budget(protector: Protector) -> None:
    large = np.ascontiguousarray(photo().repeat(4, 0).repeat(4, 1))
    config = protector.config
    work = Work.of(PhotoIn(key="a", pixels=large), protector.models.detector, torch.device("cpu"), config)
    assert all(part.pitch >= 2 for part in work.parts(config))
    out = protected(protector, large, config)
    assert min(out.ssimulacra2, out.ssimulacra2_face) >= config.visibility and out.similarity[0]["after"] < 0.95


def test_a_compared_method_is_held_to_the_same_visibility() -> None:
    settings = {"protection": "random", "visibility": 85.0}
    protector = Protector({"profile": "tiny", "overrides": settings}, seed=0, threads=1)
    out = protected(protector, photo(), protector.config)
    assert 85 <= min(out.ssimulacra2, out.ssimulacra2_face) < 92


def test_a_trace_holds_the_cosine_the_latent_shift_and_the_visibility_of_each_step(protector: Protector) -> None:
    photos = [PhotoIn(key="a", pixels=photo())]
    traced = protect(photos, [], protector.models, protector.config, seed=0, trace=True)
    lines = traced.trace["Layer 2, a"].values()
    assert [len(line) for line in lines] == [40, 40] and traced.steps["joint_layers"]["perturbation"] == 40
    shifts, scores = (
        traced.trace["Layer 1, a"]["latent shift"],
        traced.trace["Visibility, a"]["SSIMULACRA2 in the loop"],
    )
    assert len(shifts) == len(scores) == 40 and shifts[-1] > 10 * shifts[0]
    assert scores[0] > 90 and 70 < scores[-1] < 90
    assert traced.steps.keys() == traced.seconds.keys() - {"detect"}


def test_recomputing_activations_changes_no_byte(protector: Protector) -> None:
    config = protector.config.replaced(joint=protector.config.joint.replaced(steps=3))
    plain, recomputed = (
        protected(protector, photo(), config.replaced(finetuning=config.finetuning.replaced(recompute=on)))
        for on in (False, True)
    )
    assert np.array_equal(plain.pixels, recomputed.pixels)
    protector.models.vaes[0].vae.recompute(False)


@pytest.mark.parametrize("layers", ["both", "finetuning"])
def test_algorithm_1_under_the_budget_alone_and_as_the_start_of_the_latent_push(layers: Any) -> None:
    """What layer 1 does, by its choice: each keeps the budget, and they differ."""
    short = {"layers": layers, "finetuning": {"iter_ft": 2, "iter_opt": 2}, "joint": {"steps": 12}}
    photos, found = [PhotoIn(key="a", pixels=photo())], {}
    for layer_1 in ("latent", "adft", "both"):
        made = Protector({"profile": "tiny", "overrides": short | {"layer_1": layer_1}}, 0, 1)
        assert (made.models.surrogate is None, len(made.models.vaes)) == (layer_1 == "latent", layer_1 != "adft")
        out = protect(photos, [], made.models, made.config, seed=0, trace=True)
        found[layer_1] = out.photos[0]
        assert min(out.photos[0].ssimulacra2, out.photos[0].ssimulacra2_face) >= made.config.visibility
        assert ("finetuning_layer" in out.steps) == (layer_1 != "latent")
        assert ("Layer 1, a" in out.trace) == (layer_1 != "adft")
        assert not np.array_equal(out.photos[0].pixels, photo()) and out.photos[0].linf <= made.config.joint.eta + 1e-9
    pairs = [("latent", "adft"), ("latent", "both"), ("adft", "both")]
    assert not any(np.array_equal(found[a].pixels, found[b].pixels) for a, b in pairs)
