"""The networks of a worker: wrong names and settings are refused before the first row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dladiff.errors import ConfigError, DladiffError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.networks import EvaluationModels

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers, at load


def models(**others: Any) -> EvaluationModels:
    return EvaluationModels(EvaluateConfig(output="o", results="r", **({"attacks": ("encoder_only",)} | others)))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"attacks": ("lora",), "settings": {"lora": {"step": 3}}}, "did you mean steps"),
        ({"attacks": ("lora",), "settings": {"lora": {"steps": "many"}}}, "lora.steps: expected int"),
        ({"preprocessings": ("diffpure=/nowhere",)}, "diffpure needs"),
        ({"bases": ("/nowhere",), "attacks": ("lora",)}, "nowhere"),
        ({"attacks": ("instantid",)}, "instantid does not attack tiny"),
        (
            {"attacks": ("ip_adapter_faceid",), "settings": {"ip_adapter_faceid": {"adapter": "/nowhere"}}},
            "no IP-Adapter FaceID weights",
        ),
    ],
)
def test_missing_weights_and_wrong_settings_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(DladiffError, match=text):
        models(**settings).check()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"attacks": ("encoder_only", "dreamboth")}, "did you mean dreambooth"),
        ({"settings": {"loro": {"steps": 3}}}, "did you mean lora"),
        ({"preprocessings": ("none", "jpg75")}, "did you mean jpeg75"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_loaded(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        models(**settings)


def test_a_missing_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DladiffError, match="no quality network"):
        _ = models(fiqa=str(tmp_path / "none.onnx")).networks
    with pytest.raises(ConfigError):
        models(count=0)


@pytest.mark.networks
def test_preprocessing_by_name_and_crops_of_the_tiny_model(assets: Path) -> None:
    import cv2

    loaded = models(evaluators=("embedded:mobile",), preprocessings=("half",))
    loaded.check()
    bgr: Any = cv2.imread(str(assets / "photos" / "celebahq_103" / "set_B_2263.jpg"))
    photo = bgr[:, :, ::-1].copy()
    assert loaded.preprocessing("half")(photo).shape == photo.shape
    crops = loaded.crops([photo, np.zeros((80, 80, 3), np.uint8)], "embedded")
    assert [s.shape for s in crops] == [(128, 128, 3)]
    assert loaded.base("embedded")[1] is None  # no safety checker
