"""Which files of an adapter's encoders are read: others are refused with their fault; a pickle is converted once."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dladiff.errors import ModelError
from dladiff.faces.readings import load_reading
from dladiff.faces.weights import WEIGHTS
from tests.support import adapter_weights


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLADIFF_FACES", str(tmp_path))
    monkeypatch.setenv("DLADIFF_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = tmp_path / WEIGHTS["arcface-ir-se50"].file
    with pytest.raises(ModelError, match=r"licence MIT.*v0\.1\.0"):
        load_reading("adapter:infiniteyou.id")
    file.write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="no readable safetensors file"):
        load_reading("adapter:infiniteyou.id")
    state = adapter_weights.recogniser_state(squeezed=True)
    for change, text in (
        ({"body.1.res_layer.4.weight": None}, r"lacks body\.1\.res_layer\.4\.weight"),
        ({"body.1.res_layer.4.weight": torch.zeros(2)}, "has the shape"),
        ({"input_layer.0.weight": None}, "does not hold the weights"),
        ({"output_layer.3.bias": torch.full((16,), float("nan"))}, "not finite"),
    ):
        changed = {k: v.contiguous() for k, v in (state | change).items() if v is not None}
        save_file(changed, file)
        with pytest.raises(ModelError, match=text):
            load_reading("adapter:infiniteyou.id")
    few = {k: v.contiguous() for k, v in adapter_weights.eva_state(blocks=3).items()}
    save_file(few, tmp_path / WEIGHTS["eva02-clip-l-336"].file)
    with pytest.raises(ModelError, match="holds 3 blocks"):
        load_reading("adapter:pulid.eva")
    adapter_weights.save_clip(tmp_path / "clip-vit-h", side=160)
    with pytest.raises(ModelError, match="takes pictures of 160 px"):
        load_reading("adapter:faceid-plus.face")


def test_a_published_pickle_is_converted_once(tmp_path: Path) -> None:
    from dladiff.faces.convert_encoder import convert

    nested = {"id_encoder": {"a.weight": torch.ones(2)}, "lora_weights": {"b": torch.zeros(1)}, "version": 2}
    torch.save(nested, tmp_path / "in.bin")
    assert convert(tmp_path / "in.bin", tmp_path / "out.safetensors") == 2
    assert set(load_file(tmp_path / "out.safetensors")) == {"id_encoder.a.weight", "lora_weights.b"}
    torch.save({"version": 2}, tmp_path / "none.bin")
    with pytest.raises(ValueError, match="no tensors"):
        convert(tmp_path / "none.bin", tmp_path / "none.safetensors")
