"""What a run says where Ray does not start."""

import socket

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


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_answers_and_refuses_is_told_from_one_that_is_not_there(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster")  # what Ray 2.60 says to a wrong token too

    monkeypatch.setattr(ray, "init", init)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with (
            pytest.raises(StorageError, match=r"answers, but does not take this client: set "),
            started(),
        ):
            pass
    with pytest.raises(StorageError, match=f"no Ray cluster answers at RAY_ADDRESS={address}"), started():
        pass
