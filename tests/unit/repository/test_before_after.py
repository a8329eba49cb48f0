"""The picture of README: panels as they are, and the change amplified as its label says."""

import importlib.util
from pathlib import Path

from PIL import Image

FILE = Path(__file__).resolve().parents[3] / "docs" / "figures" / "make_before_after.py"


def test_panels_are_untouched_and_the_change_is_amplified() -> None:
    found = importlib.util.spec_from_file_location("make_before_after", FILE)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    original, protected = Image.new("RGB", (300, 40), (100, 100, 100)), Image.new("RGB", (300, 40), (103, 98, 200))
    made = module.figure(original, protected)
    lefts = [place * (300 + module.GAP) for place in range(3)]
    assert made.size == (lefts[2] + 300, module.LABEL + 40)
    seen = [made.getpixel((left + 7, module.LABEL + 9)) for left in lefts]
    assert seen == [(100, 100, 100), (103, 98, 200), (128 + 7 * 3, 128 - 7 * 2, 255)]
