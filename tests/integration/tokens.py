"""Token authentication for a Ray that a test starts: never without."""

import contextlib
import os
import secrets
from collections.abc import Iterator

from pipeline.run.local_ray import reread_environment


@contextlib.contextmanager
def ray_token(token: str | None = None, **others: str) -> Iterator[str]:
    """Set a token, by default a new one, and other variables; put back what was.

    They hold for the processes that start meanwhile, and for the Ray of this one.
    """
    token = token or secrets.token_hex(32)
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} | others
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    reread_environment()
    try:
        yield token
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        reread_environment()
