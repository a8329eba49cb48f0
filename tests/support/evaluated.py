"""An evaluation without networks: fakes that do arithmetic on pixels replace them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dladiff.errors import ModelError
from dladiff.evaluation.attacks import ENCODER_ONLY
from dladiff.evaluation.evaluator import EmbeddedFaces
from dladiff.evaluation.scores import Networks
from dladiff.faces.detect import Face
from pipeline.evaluate.actor import EvaluateIdentity
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.plan import EvaluationPlan, make_plan
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.support.outputs import protected_output

Picture = NDArray[np.uint8]
FACE = Face(box=(4.0, 4.0, 60.0, 60.0), landmarks=np.zeros((5, 2)), score=1.0)


class Encoder:
    name, sha256 = "fake", "0"


class Mean:
    """An evaluator whose embedding is the mean colour; a black picture has no face."""

    detector: Any = None
    encoders = (Encoder(),)

    def embed(self, picture: Picture) -> EmbeddedFaces | None:
        colour = picture.reshape(-1, 3).mean(0)
        return EmbeddedFaces((FACE,), {"fake": colour / np.linalg.norm(colour)}) if colour.any() else None

    def mean_embedding(self, pictures: list[Picture]) -> tuple[dict[str, Any], int]:
        found = [r.embeddings["fake"] for p in pictures if (r := self.embed(p))]
        mean = np.sum(found, 0) if found else None
        return ({} if mean is None else {"fake": mean / np.linalg.norm(mean)}), len(found)


class Features:
    name = "mobile"

    def __call__(self, picture: Picture) -> NDArray[np.float64]:
        return picture.reshape(-1, 3).mean(0)


class FakeModels:
    """Replaces `EvaluationModels`: an attack returns its training crops, and every fourth picture is black."""

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        evaluator: Any = Mean()
        self.networks = Networks(evaluator=evaluator, features=Features())

    def check(self) -> None:
        for name in self.config.attacks:
            self.attack(name, "embedded")

    def attack(self, name: str, base: str) -> Callable[[list[Picture], int], dict[str, list[Picture]]] | None:
        if name == ENCODER_ONLY:
            return None
        if name == "ip_adapter_faceid":
            raise ModelError("no weights")

        def run(crops: list[Picture], seed: int) -> dict[str, list[Picture]]:
            if name == "textual_inversion":
                raise RuntimeError("out of luck")
            made = [crops[i % len(crops)] if i % 4 != 3 else np.zeros_like(crops[0]) for i in range(self.config.count)]
            return {prompt: made for prompt in self.config.prompts}

        return run

    def base(self, folder: str) -> tuple[Any, Any]:
        return None, None

    def preprocessing(self, name: str) -> Callable[[Picture], Picture]:
        preprocessings: dict[str, Callable[[Picture], Picture]] = {"none": np.copy, "blur": np.zeros_like}
        return preprocessings[name]

    def crops(self, photos: list[Picture], base: str) -> list[Picture]:
        return [photo[:64, :64] for photo in photos if photo.any()]


def configured(folder: Path, **others: Any) -> EvaluateConfig:
    settings: dict[str, Any] = {
        "inputs": (str(folder / "in"),),
        "attacks": ("dreambooth",),
        "prompts": ("a photo of sks person",),
        "count": 4,
    }
    return EvaluateConfig(output=str(folder / "out"), results=str(folder / "results"), **(settings | others))


def evaluated(
    folder: Path, people: dict[str, list[str]], **others: Any
) -> tuple[EvaluateConfig, EvaluationPlan, Storage]:
    """Protect people with noise, attack them with fakes, row by row; return the configuration, plan and results."""
    protected_output(folder, people)
    config = configured(folder, **others)
    plan = make_plan(config)
    worker = actor(config)
    for row in plan.rows:
        worker({"work": json.dumps(row)})
    return config, plan, open_storage(config.results)


def actor(config: EvaluateConfig) -> EvaluateIdentity:
    """Return a worker that holds the fakes."""
    open_storage(config.results, create=True)
    worker = EvaluateIdentity(config.to_dict(), "run")
    worker.models = FakeModels(config)  # type: ignore[assignment]
    return worker
