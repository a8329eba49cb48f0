"""The displacement of a face: its bound, smoothness, frame and gradient; and the field of one person."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dladiff.core.arrays import Pixels
from dladiff.core.visibility import ssimulacra2
from dladiff.errors import ConfigError
from dladiff.faces.cuts import FaceCut
from dladiff.faces.detect import ARCFACE_TEMPLATE, CROP, Face, alignment_matrix
from dladiff.faces.encoder import IdentityEncoder
from dladiff.layers import geometry
from dladiff.layers.displacement import EYES, Field, allowed, displaced, shifts
from dladiff.layers.geometry import Networks, Portrait, displace, fit, objective, own_faces
from dladiff.settings.schema import ZeroShotConfig, method_config

CONFIG = ZeroShotConfig(threshold=-1.0, margin=0.0)


def field(largest: float = 3.0, strength: float = 5.0, seed: int = 0) -> Field:
    zero = Field.zero(largest)
    noise = torch.randn(zero.controls.shape, generator=torch.Generator().manual_seed(seed))
    return Field(strength * noise, largest)


def photo(height: int = 300, width: int = 260, seed: int = 1) -> Pixels:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.float32)
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 3) * 4 - 380, 0, 255).astype(np.uint8)


def face(scale: float = 1.5, angle: float = 0.0, shift: tuple[float, float] = (40.0, 60.0)) -> Face:
    """A face whose landmarks are the template's, scaled, rotated (degrees) and moved."""
    turn = np.deg2rad(angle)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    landmarks = ARCFACE_TEMPLATE @ matrix.T + shift
    low, high = landmarks.min(0) - 30, landmarks.max(0) + 30
    return Face(box=(*low, *high), landmarks=landmarks, score=0.9)


def points(step: float = 1.0) -> Tensor:
    line = torch.arange(-20.0, 132.0, step, dtype=torch.float64)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)


class Means(nn.Module):
    """Means of 8 x 8 cells, less the picture's mean: a network whose embedding changes when the face moves."""

    def forward(self, crops: Tensor) -> Tensor:
        cells = nn.functional.avg_pool2d(crops, 8)
        return cells - cells.mean((2, 3), keepdim=True)


class Given:
    """A detector that finds the faces that it is given."""

    name, sha256, licence = "given", "", ""

    def __init__(self, *faces: Face) -> None:
        self.faces = list(faces)

    def detect(self, rgb: Pixels) -> list[Face]:
        return self.faces

    def passes(self, rgb: Pixels) -> list[list[Face]]:
        return [self.faces]

    def passes_near(self, rgb: Pixels, faces: Sequence[Face]) -> list[list[list[Face]]]:
        return [[self.faces] for _ in faces]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "STEPS", 12)


def networks(*faces: Face) -> Networks:
    encoder = IdentityEncoder(Means(), "means", "", "", mean=127.5, std=127.5)
    return Networks([encoder], Given(*faces), torch.device("cpu"))


def test_a_zero_field_gives_the_same_bytes() -> None:
    for scale in (0.4, 1.5):
        moved = displaced(photo(), face(scale), Field.zero(3.0))
        assert np.array_equal(moved.pixels, photo())


def test_the_bound_holds_at_each_point_of_the_photo() -> None:
    """In per cent of the distance between the landmarks of the eyes, whatever the field's strength."""
    for strength in (0.5, 5.0, 1e6):
        for largest in (0.5, 3.0):
            person = face(scale=2.3, angle=35.0)
            eyes = float(np.linalg.norm(person.landmarks[1] - person.landmarks[0]))
            grid = torch.stack(torch.meshgrid(torch.arange(400.0), torch.arange(400.0), indexing="xy"), dim=-1)
            moved = shifts(field(largest, strength), grid.double(), alignment_matrix(person.landmarks))
            assert float(moved.norm(dim=-1).max()) <= largest / 100 * eyes * (1 + 1e-9)
            if strength > 1:
                assert float(moved.norm(dim=-1).max()) > 0.8 * largest / 100 * eyes  # used, not only kept


def test_eyes_brows_and_corners_of_the_mouth_are_stiffer() -> None:
    places = torch.tensor([*ARCFACE_TEMPLATE[[0, 1, 3, 4]].tolist(), [36.3, 38.7], [75.5, 38.5]])
    assert float(allowed(places).max()) < 0.35
    assert float(allowed(torch.tensor([[56.0, 20.0], [25.0, 75.0], [88.0, 75.0]])).min()) > 0.9
    outside = torch.tensor([[-0.5, 50.0], [50.0, CROP - 0.5], [-30.0, -30.0], [500.0, 50.0]])
    assert float(allowed(outside).abs().max()) == 0


def test_the_field_is_smooth() -> None:
    """Second differences of a B-spline with control points 8 px apart: halving the step divides them by four."""
    gentle = field(strength=1.0)
    found = [gentle.at(points(step)) for step in (1.0, 0.5)]
    bends = [float((f[2:] - 2 * f[1:-1] + f[:-2]).abs().max()) for f in found]
    assert bends[1] < 0.3 * bends[0]
    slope = (found[0][1:] - found[0][:-1]).norm(dim=-1).max()
    assert float(slope) < 0.5  # pixels of the crop a pixel, at 3 %: nothing folds over


def test_it_is_the_spline_of_scipy() -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    one = field(largest=100 / EYES, strength=0.2)  # a bound of one pixel of the crop
    places = torch.rand(50, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 60 + 26
    knots = (np.arange(one.controls.shape[0] + 4) - 3.5) * 8 - 0.5
    for axis in (0, 1):
        surface = one.controls[..., axis].double().numpy()
        values = [
            interpolate.bisplev(float(y), float(x), (knots, knots, surface.ravel(), 3, 3)) for x, y in places.tolist()
        ]
        spline = one.at(places) / allowed(places)[..., None]
        spline = spline / (1 - spline.square().sum(-1, keepdim=True)).sqrt()  # without the limit of the length
        np.testing.assert_allclose(spline[:, axis].numpy(), values, atol=1e-6)


def test_outside_of_the_face_no_byte_changes() -> None:
    picture = photo()
    moved = displaced(picture, face(scale=1.2), field())
    x0, y0, x1, y1 = moved.box
    outside = np.ones(picture.shape[:2], bool)
    outside[y0:y1, x0:x1] = False
    assert np.array_equal(moved.pixels[outside], picture[outside])
    assert not np.array_equal(moved.pixels, picture)
    frame = alignment_matrix(face(scale=1.2).landmarks)
    grid = torch.stack(torch.meshgrid(torch.arange(260.0), torch.arange(300.0), indexing="xy"), dim=-1)
    still = (shifts(field(), grid, frame) == 0).all(-1).numpy()
    assert np.array_equal(moved.pixels[still], picture[still])
    assert ssimulacra2(picture, moved.pixels) < 95  # the change is seen by a comparison side by side


def test_pixels_come_from_where_the_field_says() -> None:
    """A photo that is its own coordinates, as brightness, shows the displacement."""
    ramp = np.repeat(np.linspace(20, 230, 211).round().astype(np.uint8)[None, :], 200, 0)
    picture = np.ascontiguousarray(np.stack([ramp] * 3, axis=2))
    person = face(scale=1.5, shift=(20.0, 15.0))
    one = field(largest=3.0)
    moved = displaced(picture, person, one)
    grid = torch.stack(torch.meshgrid(torch.arange(211.0), torch.arange(200.0), indexing="xy"), dim=-1)
    wanted = shifts(one, grid, alignment_matrix(person.landmarks))[..., 0].numpy()
    found = moved.pixels[..., 0].astype(float) - picture[..., 0]
    assert np.abs(found - wanted)[:, 5:-5].max() <= 0.75  # half a level of rounding, 1/32 px and the interpolation


@pytest.mark.parametrize(("scale", "angle"), [(1.0, 0.0), (2.0, 0.0), (1.5, 30.0), (0.7, -140.0)])
def test_a_rotated_and_a_scaled_face_move_alike(scale: float, angle: float) -> None:
    """The same places of the face move to the same places of the face, in units of the face."""
    one, person = field(), face(scale, angle, shift=(150.0, 150.0))
    frame = alignment_matrix(person.landmarks)
    places = points(4.0)
    back = np.linalg.inv(frame[:, :2])
    in_photo = (places - torch.from_numpy(frame[:, 2])) @ torch.from_numpy(back).T
    moved = shifts(one, in_photo, frame) @ torch.from_numpy(frame[:, :2]).T
    torch.testing.assert_close(moved, one.at(places), atol=1e-6, rtol=1e-6)


def test_crops_of_the_field_are_crops_of_the_displaced_photo() -> None:
    """What the loop sees is what is stored, up to rounding and the interpolation."""
    picture, person, one = photo(400, 400), face(scale=2.0), field()
    found = networks(person)
    portrait = Portrait.of(picture, person, found)
    after = Portrait.of(displaced(picture, person, one).pixels, person, found)
    seen, stored = portrait.crops(one, portrait.bases, FaceCut()), after.crops(Field.zero(3.0), after.bases, FaceCut())
    change = stored - portrait.crops(Field.zero(3.0), portrait.bases, FaceCut())
    assert float((seen - stored).abs().mean()) < 0.15 * float(change.abs().mean())


def test_gradient_by_finite_differences() -> None:
    person = face(scale=1.5)
    found = networks(person)
    portrait = Portrait.of(photo(), person, found)
    controls = field(strength=0.5).controls.requires_grad_(True)

    def loss(values: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return objective(Field(values, 3.0), [portrait], found.encoders, CONFIG, 1, generator)

    (gradient,) = torch.autograd.grad(loss(controls), controls)
    direction = gradient.norm().reciprocal() * gradient
    with torch.no_grad():
        step = 0.05
        slope = (loss(controls + step * direction) - loss(controls - step * direction)) / (2 * step)
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.1)


@pytest.mark.usefixtures("short")
def test_the_field_lowers_the_cosine_and_depends_on_seed_and_content_alone() -> None:
    person = face(scale=1.5)
    found = networks(person)
    photos = [(photo(seed=seed), [person]) for seed in (1, 2)]
    outs = displace(photos, photos, found, CONFIG, 3.0, 0)
    again = displace(photos[::-1], photos[::-1], found, CONFIG, 3.0, 0)[::-1]
    other = displace(photos, photos, found, CONFIG, 3.0, 1)
    for one, two, three in zip(outs, again, other, strict=True):
        assert one and two and three
        assert np.array_equal(one.pixels, two.pixels) and not np.array_equal(one.pixels, three.pixels)
    portraits = [Portrait.of(pixels, person, found) for pixels, _ in photos]
    best = fit(portraits, found.encoders, CONFIG, 3.0, torch.Generator().manual_seed(0))
    losses = [
        float(objective(one, portraits, found.encoders, CONFIG, 0, torch.Generator().manual_seed(0)))
        for one in (Field.zero(3.0), best)
    ]
    assert losses[1] < losses[0] - 1e-3


@pytest.mark.usefixtures("short")
def test_photos_that_share_a_clean_set_get_the_same_field(monkeypatch: pytest.MonkeyPatch) -> None:
    person, fields = face(scale=1.5), []
    real = displaced
    monkeypatch.setattr(geometry, "displaced", lambda p, f, one: fields.append(one.controls) or real(p, f, one))
    learnt = [(photo(seed=seed), [person]) for seed in (1, 2)]
    for seeds in ((3,), (4, 5)):  # two tasks of one identity
        displace([(photo(seed=seed), [person]) for seed in seeds], learnt, networks(person), CONFIG, 1.0, 0)
    assert len(fields) == 3 and all(torch.equal(one, fields[0]) for one in fields)


@pytest.mark.usefixtures("short")
def test_a_photo_without_a_face_is_left_alone() -> None:
    person = face(scale=1.5)
    photos: list[Any] = [(photo(seed=1), [person]), (photo(seed=2), [])]
    assert [one is None for one in displace(photos, photos, networks(person), CONFIG, 1.0, 0)] == [False, True]
    nobody: list[Any] = [(photo(seed=2), [])]
    assert displace(nobody, nobody, networks(), CONFIG, 1.0, 0) == [None]


def test_of_several_faces_the_person_is_the_one_like_the_others() -> None:
    """The person's photo, and a group in which another face is larger."""
    alone, small, large = face(1.2, shift=(60.0, 70.0)), face(0.8, shift=(20.0, 20.0)), face(1.3, shift=(130.0, 60.0))
    portrait, group = photo(seed=7), photo(300, 300, seed=8)
    frame, target = alignment_matrix(alone.landmarks), alignment_matrix(small.landmarks)
    linear = np.linalg.inv(target[:, :2]) @ frame[:, :2]
    copied = np.column_stack([linear, np.linalg.inv(target[:, :2]) @ (frame[:, 2] - target[:, 2])])
    pasted = cv2.warpAffine(portrait, copied, (300, 300))
    mask = cv2.warpAffine(np.ones(portrait.shape[:2], np.uint8), copied, (300, 300)) > 0
    mask[:, 130:] = False
    group[mask] = pasted[mask]
    photos = [(portrait, [alone]), (portrait[:, ::1].copy(), [alone]), (group, [large, small])]
    assert list(own_faces(photos, photos, networks())) == [alone, alone, small]


@pytest.mark.parametrize(
    "changes",
    [{"visibility": 0.0}, {"layers": "finetuning"}, {"protection": "aspl"}, {"encoders": [], "layers": "finetuning"}],
)
def test_settings_that_leave_it_without_effect_are_refused_in_one_line(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        method_config("tiny", None, changes | {"experimental": {"geometry": 1.0}})
    assert [str(line).startswith("experimental.geometry: needs") for line in caught.value.faults] == [True]


def test_values_out_of_range_and_unknown_names_are_refused() -> None:
    for group in ({"geometry": 3.5}, {"geometry": -1.0}, {"geometri": 1.0}):
        with pytest.raises(ConfigError, match="experimental"):
            method_config("tiny", None, {"experimental": group})
    assert method_config("tiny", None, {}).experimental.geometry == 0
