"""How a model is refused, and parts of its files."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dladiff.errors import ModelError
from pipeline.cli.main import main


def refused(call: Callable[[], Any], why: str) -> None:
    with pytest.raises(ModelError, match=why) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500


def checked(folder: Path) -> str:
    """The line that `dladiff models check` prints for the model."""
    found = CliRunner().invoke(main, ["models", "check", str(folder)])
    assert found.exit_code == 1 and "fault of dladiff" not in found.output, found.output
    assert not any(line for line in found.output.splitlines() if not line.startswith(("fault: ", "note: ")))
    return found.output


def head(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


TENSOR = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}
