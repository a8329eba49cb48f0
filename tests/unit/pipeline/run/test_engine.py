"""What a run says where Ray does not start."""

import pytest
import ray

from dladiff.errors import StorageError
from pipeline.run.engine import started


@pytest.mark.parametrize("error", [Exception("The node timed out during startup.\nMore."), RuntimeError(), OSError(24)])
def test_a_ray_that_does_not_start_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(StorageError, match=r"^Ray does not start: [^\n]+$"), started():
        pass
