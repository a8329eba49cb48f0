"""What adapters read, from files in the published layouts (few channels, random weights), against references.

References are written with other means: complex numbers for rotary positions, functions of torch for the residual
networks, transformers' own image processors, OpenCV and Pillow for pictures.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionModelWithProjection, SiglipVisionModel

from dladiff.core.pixels import to_float
from dladiff.faces.cuts import FaceCut, PhotoCut
from dladiff.faces.networks.state import read_state
from dladiff.faces.readings import LUMA, ReadingEncoder, load_reading, unit_tokens
from dladiff.faces.weights import WEIGHTS
from tests.support import adapter_weights
from tests.support.adapter_weights import HEAD

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("weights")
    adapter_weights.save_towers(path)
    before = os.environ.get("DLADIFF_FACES")
    os.environ["DLADIFF_FACES"] = str(path)
    yield path
    os.environ.pop("DLADIFF_FACES") if before is None else os.environ.update(DLADIFF_FACES=before)


def crops(side: int, count: int = 2) -> Tensor:
    picture = to_float(np.ascontiguousarray(skimage.data.astronaut()[:256, 96:352]))
    sized = functional.interpolate(picture, (side, side), mode="bilinear", antialias=True)
    return torch.cat([sized, sized.flip(3)])[:count].contiguous()


def close(got: Tensor, tokens: Tensor) -> None:
    """Compare a result with one output's tokens `b t c`."""
    expected = functional.normalize(tokens, dim=2) / tokens.shape[1] ** 0.5
    assert got.shape == expected.flatten(1).shape
    assert torch.allclose(got, expected.flatten(1), atol=1e-5), float((got - expected.flatten(1)).abs().max())


def test_the_product_of_two_results_is_the_mean_cosine_of_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = ([torch.randn(2, t, c, generator=generator) for t, c in ((1, 5), (7, 3))] for _ in range(2))
    cosines = [functional.cosine_similarity(a, b, dim=2).mean(1) for a, b in zip(first, second, strict=True)]
    assert torch.allclose((unit_tokens(first) * unit_tokens(second)).sum(1), torch.stack(cosines).mean(0), atol=1e-6)


def test_faceid_plus_gives_clip_the_crop_with_blue_first(folder: Path) -> None:
    encoder = load_reading("adapter:faceid-plus.face")
    assert encoder.cut == FaceCut(224) and encoder.name == "faceid-plus.face" and len(encoder.sha256) == 64
    model = CLIPVisionModelWithProjection.from_pretrained(folder / "clip-vit-h").eval()
    pixels = (crops(224).flip(1) - CLIP_MEAN) / CLIP_STD
    with torch.no_grad():
        layers = model.vision_model.encoder.layers
        hidden = model.vision_model.pre_layrnorm(model.vision_model.embeddings(pixels))
        for layer in layers[:-1]:  # all but the last
            out = layer(hidden, None)
            hidden = out if isinstance(out, Tensor) else out[0]
    close(encoder(crops(224)), hidden)


def test_storymaker_and_uniportrait_read_it_in_rgb(folder: Path) -> None:
    story, portrait = load_reading("adapter:storymaker.face"), load_reading("adapter:uniportrait.face")
    model = CLIPVisionModelWithProjection.from_pretrained(folder / "clip-vit-h").eval()
    with torch.no_grad():
        hidden = model(pixel_values=(crops(224) - CLIP_MEAN) / CLIP_STD, output_hidden_states=True).hidden_states[-2]
    close(story(crops(224)), hidden)
    close(portrait(crops(224)), hidden[:, 1:])
    person = load_reading("adapter:storymaker.person")
    assert person.cut == PhotoCut(224, middle=False) and person.sha256 == story.sha256
    assert person.reading != story.reading  # one file, two readings


def test_photomaker_reads_its_own_tower_to_the_last_layer(folder: Path) -> None:
    encoder = load_reading("adapter:photomaker.photo")
    assert encoder.cut == PhotoCut(224, middle=True)
    state = load_file(folder / WEIGHTS["photomaker-v2"].file)
    from transformers import CLIPVisionConfig

    config = CLIPVisionConfig(
        hidden_size=HEAD, intermediate_size=48, num_hidden_layers=2, num_attention_heads=1, image_size=224,
        patch_size=32, projection_dim=24,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config).eval()
    own = {k.removeprefix("id_encoder."): v for k, v in state.items() if k.startswith("id_encoder.")}
    own.pop("visual_projection_2.weight")
    model.load_state_dict(own)
    with torch.no_grad():
        close(encoder(crops(224)), model(pixel_values=(crops(224) - CLIP_MEAN) / CLIP_STD).last_hidden_state)


def test_ip_adapters_of_sd35_and_flux(folder: Path) -> None:
    sd35, flux = load_reading("adapter:sd35-ip-adapter.photo"), load_reading("adapter:flux-ip-adapter-instantx.photo")
    model = SiglipVisionModel.from_pretrained(folder / "siglip-so400m-384").eval()
    with torch.no_grad():
        out = model(pixel_values=(crops(384) - 0.5) / 0.5, output_hidden_states=True)
    close(sd35(crops(384)), out.hidden_states[-2])
    close(flux(crops(384)), out.pooler_output[:, None])
    xlabs = load_reading("adapter:flux-ip-adapter.photo")
    clip = CLIPVisionModelWithProjection.from_pretrained(folder / "clip-vit-l").eval()
    with torch.no_grad():
        close(xlabs(crops(224)), clip(pixel_values=(crops(224) - CLIP_MEAN) / CLIP_STD).image_embeds[:, None])


def _norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return functional.batch_norm(x, mean, var, state.get(f"{name}.weight"), state.get(f"{name}.bias"))


def _recognise(state: dict[str, Tensor], x: Tensor, squeezed: bool, stages: tuple[int, ...]) -> tuple[Tensor, list]:
    """The residual network by torch's functions; also the maps at the end of each stage."""
    x = functional.conv2d(x, state["input_layer.0.weight"], padding=1)
    x = functional.prelu(_norm(x, state, "input_layer.1"), state["input_layer.2.weight"])
    number, maps = 0, []
    for count in stages:
        for unit in range(count):
            block, stride = f"body.{number}", 2 if unit == 0 else 1
            res = f"{block}.res_layer"
            y = functional.conv2d(_norm(x, state, f"{res}.0"), state[f"{res}.1.weight"], padding=1)
            at = 2
            if not squeezed:
                y, at = _norm(y, state, f"{res}.2"), 3
            y = functional.prelu(y, state[f"{res}.{at}.weight"])
            y = functional.conv2d(y, state[f"{res}.{at + 1}.weight"], stride=stride, padding=1)
            y = _norm(y, state, f"{res}.{at + 2}")
            if squeezed:
                weights = functional.conv2d(y.mean((2, 3), keepdim=True), state[f"{res}.5.fc1.weight"])
                y = y * torch.sigmoid(functional.conv2d(weights.relu(), state[f"{res}.5.fc2.weight"]))
            if f"{block}.shortcut_layer.0.weight" in state:
                short = functional.conv2d(x, state[f"{block}.shortcut_layer.0.weight"], stride=stride)
                short = _norm(short, state, f"{block}.shortcut_layer.1")
            else:
                short = x[:, :, ::stride, ::stride]
            x, number = y + short, number + 1
        maps.append(x)
    flat = _norm(x, state, "output_layer.0").flatten(1)
    out = flat @ state["output_layer.3.weight"].T + state["output_layer.3.bias"]
    return _norm(out, state, "output_layer.4"), maps


def test_infiniteyou_reads_facexlibs_arcface_with_blue_first(folder: Path) -> None:
    encoder = load_reading("adapter:infiniteyou.id")
    state = load_file(folder / WEIGHTS["arcface-ir-se50"].file)
    vector, _ = _recognise(state, 2 * crops(112).flip(1) - 1, True, (2, 2, 3, 2))
    close(encoder(crops(112)), vector[:, None])


def test_uniportrait_reads_curricularfaces_maps(folder: Path) -> None:
    encoder = load_reading("adapter:uniportrait.id")
    assert encoder.cut == FaceCut(224)
    state = load_file(folder / WEIGHTS["curricularface-r101"].file)
    small = functional.avg_pool2d(crops(224), 2)  # bilinear by half
    _, maps = _recognise(state, 2 * small - 1, False, (2, 2, 3, 2))
    assert [m.shape[2] for m in maps] == [56, 28, 14, 7]
    resized = [functional.interpolate(m, (16, 16), mode="bilinear", align_corners=False) for m in maps[:3]]
    tokens = [maps[3].flatten(2).transpose(1, 2), torch.cat(resized, 1).flatten(2).transpose(1, 2)]
    assert torch.allclose(encoder(crops(224)), unit_tokens(tokens), atol=1e-5)


def _eva(state: dict[str, Tensor], x: Tensor, cells: int, taken: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
    """EVA02-CLIP by torch's functions, with rotary positions as complex numbers."""
    width = state["cls_token"].shape[2]
    x = functional.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    rates = 10000.0 ** (-torch.arange(HEAD // 4) / (HEAD // 4))
    place = torch.arange(cells) * 16 / cells
    rows = (place[:, None] * rates).repeat_interleave(cells, 0)
    columns = (place[:, None] * rates).repeat(cells, 1)
    angles = torch.cat([rows, columns], 1)
    turn = torch.polar(torch.ones_like(angles), angles)

    def turned(q: Tensor) -> Tensor:
        pairs = torch.view_as_complex(q[:, :, 1:].reshape(*q.shape[:2], -1, HEAD // 2, 2).contiguous())
        return torch.cat([q[:, :, :1], torch.view_as_real(pairs * turn).flatten(-2)], 2)

    def norm(y: Tensor, name: str) -> Tensor:
        return functional.layer_norm(y, y.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def heads(y: Tensor) -> Tensor:
        return y.reshape(*y.shape[:2], width // HEAD, HEAD).transpose(1, 2)

    hidden, number = [], 0
    while f"blocks.{number}.norm1.weight" in state:
        if number in taken:
            hidden.append(x)
        block = f"blocks.{number}"
        y, a = norm(x, f"{block}.norm1"), f"{block}.attn"
        q, k, v = (y @ state[f"{a}.{n}_proj.weight"].T for n in "qkv")
        q, k = turned(heads(q + state[f"{a}.q_bias"])), turned(heads(k))
        weights = (q @ k.transpose(2, 3) / HEAD**0.5).softmax(-1)
        y = (weights @ heads(v + state[f"{a}.v_bias"])).transpose(1, 2).flatten(2)
        x = x + norm(y, f"{a}.inner_attn_ln") @ state[f"{a}.proj.weight"].T + state[f"{a}.proj.bias"]
        y, m = norm(x, f"{block}.norm2"), f"{block}.mlp"
        gate, value = (y @ state[f"{m}.{n}.weight"].T + state[f"{m}.{n}.bias"] for n in ("w1", "w2"))
        y = norm(gate * torch.sigmoid(gate) * value, f"{m}.ffn_ln")
        x, number = x + y @ state[f"{m}.w3.weight"].T + state[f"{m}.w3.bias"], number + 1
    return norm(x, "norm")[:, 0] @ state["head.weight"].T + state["head.bias"], hidden


def _half_background(encoder: ReadingEncoder) -> None:
    """Let the parsing network find background in the left half: random weights find it anywhere."""
    left = (torch.arange(512) < 256).expand(1, 1, 512, 512)
    setattr(encoder.parsing, "background", lambda x: left.expand(len(x), -1, -1, -1))  # noqa: B010 - a method


def test_pulid_reads_the_grey_face_on_white(folder: Path) -> None:
    encoder = load_reading("adapter:pulid.eva")
    assert isinstance(encoder, ReadingEncoder) and encoder.cut == FaceCut(512, ffhq=True)
    _half_background(encoder)
    state = read_state(folder / WEIGHTS["eva02-clip-l-336"].file, "visual.")
    grey = torch.einsum("bchw,c->bhw", crops(512), torch.tensor([0.299, 0.587, 0.114]))[:, None]
    grey = grey.expand(-1, 3, -1, -1).clone()
    grey[..., :256] = 1
    small = functional.interpolate(grey, (336, 336), mode="bicubic", antialias=True)
    assert torch.allclose(encoder.pictures(crops(512)), small, atol=1e-6) and sum(LUMA) == pytest.approx(1)
    with torch.no_grad():
        vector, hidden = _eva(state, (small - CLIP_MEAN) / CLIP_STD, 24, (4, 8, 12, 16, 20))
        got = encoder(crops(512))
    assert len(hidden) == 5 and hidden[0].shape == (2, 577, HEAD)
    assert torch.allclose(got, unit_tokens([vector[:, None], *hidden]), atol=1e-4)


def test_the_mask_has_no_gradient_and_the_face_has_one(folder: Path) -> None:
    encoder = load_reading("adapter:pulid.eva")
    assert isinstance(encoder, ReadingEncoder) and encoder.parsing is not None
    classes = encoder.parsing(crops(512, 1))
    assert classes.shape == (1, 19, 512, 512)
    found = encoder.parsing.background(crops(512, 1))
    expected = np.isin(classes.argmax(1).numpy(), [0, 7, 8, 9, 14, 15, 16, 18])
    assert (found[:, 0].numpy() == expected).all()
    _half_background(encoder)
    point = crops(512, 1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(encoder.pictures(point).square().sum(), point)
    assert not gradient[..., :256].any() and gradient[..., 300:].any()


@pytest.mark.parametrize("name", ["infiniteyou.id", "faceid-plus.face", "uniportrait.id", "sd35-ip-adapter.photo"])
def test_gradients_against_finite_differences(folder: Path, name: str) -> None:
    encoder = load_reading(f"adapter:{name}").double()
    generator = torch.Generator().manual_seed(1)
    side = encoder.crop
    point, other, way = (torch.rand(1, 3, side, side, generator=generator, dtype=torch.float64) for _ in range(3))
    target = encoder(other)
    point.requires_grad_(True)
    (gradient,) = torch.autograd.grad((encoder(point) * target).sum(), point)
    step = 1e-6
    high, low = (float((encoder(point.detach() + s * step * way) * target).sum()) for s in (1, -1))
    assert float((gradient * way).sum()) == pytest.approx((high - low) / (2 * step), rel=1e-3, abs=1e-9)
