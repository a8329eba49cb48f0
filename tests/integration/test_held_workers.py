"""When a run holds workers of a cluster, and when it does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.run import driver
from pipeline.run.driver import protect
from pipeline.storage.open import open_storage
from tests.integration.test_run import configured, fill

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("collected"), pytest.mark.filterwarnings("ignore")]


@pytest.mark.usefixtures("cluster")
def test_no_worker_is_held_while_a_run_is_planned_and_its_manifests_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = {}

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*arguments: Any, **options: Any) -> Any:
            joined[name] = ray.is_initialized()
            return call(*arguments, **options)

        return inner

    monkeypatch.setattr(driver, "make_plan", noted("plan", driver.make_plan))
    monkeypatch.setattr(driver.Finaliser, "ended", noted("result", driver.Finaliser.ended))
    monkeypatch.setattr(driver.Finaliser, "finish", noted("end", driver.Finaliser.finish))
    fill(open_storage(str(tmp_path / "in"), create=True))
    assert protect(configured(str(tmp_path / "in"), str(tmp_path / "out"))).done == 3
    assert joined == {"plan": False, "result": True, "end": False}
