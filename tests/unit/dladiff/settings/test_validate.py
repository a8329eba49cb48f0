"""Settings of a model: every fault at once, in one line that names the setting, the value and what is allowed."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from dladiff.errors import ConfigError
from dladiff.settings.validate import Items, Settings, bounds


class Inner(Settings):
    RENAMED: ClassVar[dict[str, str]] = {"slope": "gradient"}

    gradient: float = Field(default=0.5, ge=0, le=1)
    mode: Literal["sign", "raw"] = "sign"
    steps: int = Field(default=1, ge=1)

    def contradictions(self) -> Iterator[str]:
        if self.mode == "raw" and self.steps > 5:
            yield "mode: raw takes at most 5 steps"
            yield f"steps: {self.steps} is more than 5"


class Outer(Settings):
    name: str
    inner: Inner = Inner()
    other: Inner | None = None
    weights: Items[Annotated[float, Field(gt=0)]] = ()
    flag: bool = False
    shares: Items[int] = Field(default=(), title="--share")
    free: dict[str, Any] = Field(default_factory=dict)


def test_every_fault_at_once_in_nested_groups() -> None:
    values = {
        "inner": {"slope": 1, "gradint": 1, "gradient": 7, "mode": "sgn", "steps": 0},
        "other": 3,
        "weights": [1, -1, float("nan")],
        "flag": 1,
        "shares": [1, "2"],
        "inne": {},
        3: 4,
    }
    config, faults = Outer.load(values, "job.")
    assert config is None
    assert sorted(faults) == [
        "job.--share: expected int, not '2'",
        "job.3: unknown setting",
        "job.flag: expected bool, not 1",
        "job.inne: unknown setting (did you mean inner?)",
        "job.inner.gradient: 7 is outside 0..1",
        "job.inner.gradint: unknown setting (did you mean gradient?)",
        "job.inner.mode: 'sgn' is not one of sign, raw (did you mean sign?)",
        "job.inner.slope: renamed to gradient",
        "job.inner.steps: 0 is less than 1",
        "job.name: is missing",
        "job.other: expected settings (name: value), not 3",
        "job.weights[1]: -1 is not above 0",
        "job.weights[2]: nan is not a finite number",
    ]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"inner": {"steps": True}}, "inner.steps: expected int, not True"),
        ({"inner": {"steps": "3"}}, "inner.steps: expected int, not '3'"),
        ({"inner": {"steps": 2.0}}, "inner.steps: expected int, not 2.0"),
        ({"inner": {"gradient": True}}, "inner.gradient: expected float, not True"),
        ({"inner": {"gradient": "0.5"}}, "inner.gradient: expected float, not '0.5'"),
        ({"inner": {"gradient": float("inf")}}, "inner.gradient: inf is not a finite number"),
        ({"inner": {"gradient": 2**20000}}, "inner.gradient: a number of 20001 bits is too large"),
        ({"weights": {1, 2}}, "weights: expected a list, not {1, 2}"),
        ({"weights": "12"}, "weights: expected a list, not '12'"),
        ({"name": 3 * "x", "free": "x" * 10**6}, "free: expected settings (name: value), not 'xxx"),
    ],
)
def test_types_are_strict_and_lines_short(values: dict[str, Any], fault: str) -> None:
    _, (found,) = Outer.load({"name": "n"} | values)
    assert found.startswith(fault) and len(found) < 300


def test_lists_are_tuples_and_whole_numbers_are_floats() -> None:
    config = Outer(name="n", weights=[1, 2.5], inner={"gradient": 1})  # type: ignore[arg-type]
    assert config.weights == (1.0, 2.5) and type(config.weights[0]) is float
    assert type(config.inner.gradient) is float
    assert config == Outer(**config.to_dict()) and config.to_dict()["weights"] == [1.0, 2.5]


@pytest.mark.parametrize("group", ["inner", "other"])
def test_what_settings_say_of_each_other_is_named_by_its_group(group: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Outer(name="n", **{group: {"mode": "raw", "steps": 6}})  # type: ignore[arg-type]
    assert caught.value.faults == [f"{group}.mode: raw takes at most 5 steps", f"{group}.steps: 6 is more than 5"]


def test_a_changed_copy_is_checked() -> None:
    config = Outer(name="n")
    assert config.replaced(inner=config.inner.replaced(steps=4)).inner.steps == 4
    with pytest.raises(ConfigError, match="steps: 0 is less than 1"):
        config.inner.replaced(steps=0)
    with pytest.raises(ConfigError, match=r"flg: unknown setting \(did you mean flag"):
        config.replaced(flg=True)


def test_bounds_are_those_of_the_field() -> None:
    assert [bounds(field) for field in Inner.model_fields.values()] == [(0, 1), (None, None), (1, None)]
