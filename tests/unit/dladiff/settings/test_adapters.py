"""Adapters by name: what each reads, and how names of encoders are expanded."""

import pytest

from dladiff.errors import ConfigError
from dladiff.faces.weights import WEIGHTS
from dladiff.settings.adapters import ADAPTERS, PREFIX, expanded, reading_of
from dladiff.settings.schema import method_config
from pipeline.config import run_config

PLACES = {"input": "/photos", "output": "/out"}


def test_each_adapter_reads_known_weights() -> None:
    assert {"faceid", "faceid-plus", "instantid", "pulid", "infiniteyou", "photomaker", "storymaker"} <= set(ADAPTERS)
    for adapter in ADAPTERS.values():
        assert adapter.readings and adapter.source
        for reading in adapter.readings.values():
            assert reading.weights in WEIGHTS and (not reading.mask or reading.mask in WEIGHTS)


def test_what_the_projects_files_say() -> None:
    """InfiniteYou's own face network gets BGR; PuLID's grey face is 512 px before 336; PhotoMaker reads the photo."""
    you, eva, photo = (reading_of(f"{PREFIX}{n}") for n in ("infiniteyou.id", "pulid.eva", "photomaker.photo"))
    assert (you.weights, you.colour, you.side) == ("arcface-ir-se50", "bgr", 112)
    assert (eva.cut, eva.side, eva.resized, eva.colour, eva.mask) == ("ffhq", 512, 336, "grey", "parsing-bisenet")
    assert (photo.cut, photo.output) == ("photo crop", "last")
    assert not reading_of(f"{PREFIX}pulid.id").normalised and reading_of(f"{PREFIX}faceid.id").normalised
    plus, maker = (reading_of(f"{PREFIX}{n}.face") for n in ("faceid-plus", "storymaker"))
    assert (plus.colour, maker.colour, plus.output) == ("bgr", "rgb", "penultimate")


def test_equal_readings_are_optimised_once() -> None:
    names = expanded(["adapter:faceid", "adapter:faceid-plus", "adapter:instantid", "adapter:pulid", "own.onnx"])
    assert names == (
        "adapter:faceid.id", "adapter:faceid-plus.face", "adapter:instantid.id", "adapter:pulid.eva", "own.onnx",
    )  # fmt: skip
    assert expanded(names) == names  # settings are read twice on the way to a worker
    assert expanded(["buffalo_l", "adapter:faceid-plus"]) == ("buffalo_l", "adapter:faceid-plus.face")
    assert expanded(["buffalo_l", "buffalo_l"]) == ("buffalo_l", "buffalo_l")
    assert expanded(["a", "a"]) == ("a", "a")  # a fault of its own, with its own message


def test_against_replaces_the_profiles_encoders_and_adds_to_named_ones() -> None:
    alone = run_config(None, PLACES | {"against": ("instantid",)}).method_config()
    assert alone.encoders == ("adapter:instantid.id",) and alone.held_out == ("embedded:mobile",)
    named = PLACES | {"against": ["pulid"], "method": {"encoders": ["embedded:residual"]}}
    assert run_config(None, named).method_config().encoders == (
        "embedded:residual", "adapter:pulid.id", "adapter:pulid.eva",
    )  # fmt: skip
    assert run_config(None, PLACES).method_config() == method_config("tiny", None, {})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"against": ["pulidd"]}, "did you mean pulid"),
        ({"method": {"encoders": ["adapter:nobody"]}}, "no adapter named 'nobody'"),
        ({"method": {"held_out": ["adapter:pulid.evaa"]}}, "pulid has no reading 'evaa' (did you mean eva?)"),
        ({"against": "pulid"}, "expected a list"),
    ],
)
def test_unknown_names_are_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_config(None, PLACES | settings)
    assert text in str(caught.value)


def test_one_line_names_every_missing_file(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in ("DLADIFF_FACES", "DLADIFF_MODELS", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = run_config(None, PLACES | {"against": ["faceid", "infiniteyou", "pulid"]})
    (line,) = config.missing_weights()
    for part in (
        "faceid, infiniteyou, pulid need", "buffalo_l/", "antelopev2/", "recognition_arcface_ir_se50.safetensors",
        "EVA02_CLIP_L_336_psz14_s6B.safetensors", "parsing_bisenet.safetensors", "licence MIT", "non-commercial",
        "huggingface.co/QuanSun/EVA-CLIP", "convert_encoder", str(tmp_path / "DLADIFF_FACES"), "--encoders-from",
    ):  # fmt: skip
        assert part in line
    (tmp_path / "DLADIFF_FACES").mkdir()
    for name in ("recognition_arcface_ir_se50", "parsing_bisenet"):
        (tmp_path / "DLADIFF_FACES" / f"{name}.safetensors").write_bytes(b"weights")
    (line,) = config.missing_weights()
    assert "recognition_arcface" not in line and "parsing" not in line and "EVA02" in line
