"""The figure of verification rate against visibility: what a point shows, and that names are escaped."""

import importlib.util
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

FILE = Path(__file__).resolve().parents[3] / "docs" / "figures" / "make_verification.py"
found = importlib.util.spec_from_file_location("make_verification", FILE)
assert found is not None and found.loader is not None
module = importlib.util.module_from_spec(found)
found.loader.exec_module(module)


def row(condition: str, identity: str, verified: float, score: float, **changed: Any) -> dict[str, Any]:
    similarity = [{"encoder": "mobile", "verified": verified}]
    return {
        "condition": condition, "identity": identity, "attack": "dreambooth", "status": "done", "preprocessing": "none",
        "similarity": similarity, "ssimulacra2_face": score,
    } | changed  # fmt: skip


def test_a_point_is_the_mean_over_people_of_dreambooth_alone() -> None:
    rows = [
        row("dladiff", "a", 0.25, 75.0),
        row("dladiff", "b", 0.75, 77.0),
        row("dladiff", "b", 1.0, 77.0, attack="lora"),
        row("dladiff", "b", 1.0, 77.0, status="failed"),
        row("dladiff", "b", 1.0, 77.0, preprocessing="blur"),
        row("noise", "a", 1.0, 66.0),
    ]
    points = module.points(rows, "mobile")
    assert list(points) == ["dladiff"]
    score, share = points["dladiff"]
    assert (score, share.value, share.people) == (76.0, 0.5, 2)


def test_the_picture_is_valid_and_names_are_escaped() -> None:
    rows = [row(name, who, 0.5, 75.0) for name in ("dladiff", "<b>&") for who in ("a", "b")]
    picture = module.figure(rows, ["mobile", "other"])
    texts = [element.text for element in ElementTree.fromstring(picture).iter() if element.tag.endswith("text")]
    assert "<b>&" in texts and "balanced" in texts and "other" in texts
