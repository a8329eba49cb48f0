"""Clusters of `ray.cluster_utils` on a busy machine: Ray gives up a raylet after 30 s, and has no setting for it."""

import contextlib
import importlib
import time
from collections.abc import Iterator
from typing import Any

import pytest

RAYLET_S = 240  # seconds for a raylet to register, as for all else that a busy machine starts


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Wait longer for raylets that this process starts."""
    services: Any = importlib.import_module("ray._private.services")
    real = services.get_node

    def get_node(*args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + RAYLET_S
        while True:
            try:
                return real(*args, **kwargs)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "get_node", get_node)
        yield
