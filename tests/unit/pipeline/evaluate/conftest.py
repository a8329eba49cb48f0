"""Evaluations that tests of this folder share: computed once; every test gets its own copy of the results."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.plan import EvaluationPlan
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.support.evaluated import evaluated

Evaluated = tuple[EvaluateConfig, EvaluationPlan, Storage]


@pytest.fixture(scope="session")
def _computed() -> dict[str, tuple[EvaluateConfig, EvaluationPlan]]:
    return {}


@pytest.fixture
def evaluate_once(
    _computed: dict[str, tuple[EvaluateConfig, EvaluationPlan]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Evaluated]:
    """Return `evaluated` for tests that change the results only, not the photos or the protected output."""

    def copy(people: dict[str, list[str]], **others: Any) -> Evaluated:
        name = f"{people} {others}"
        if name not in _computed:
            _computed[name] = evaluated(tmp_path_factory.mktemp("evaluated"), people, **others)[:2]
        config, plan = _computed[name]
        results = tmp_path_factory.mktemp("copy") / "results"
        shutil.copytree(Path(config.results), results)
        return config.replaced(results=str(results)), plan, open_storage(str(results))

    return copy
