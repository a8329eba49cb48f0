"""Settings as frozen pydantic models of strict types: every fault at once, in one line each, with the nearest name."""

import json
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dladiff.errors import ConfigError
from dladiff.settings.merge import nearest

T = TypeVar("T")
Items = Annotated[tuple[T, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
"""A tuple, which YAML and JSON write as a list. Sets are refused: they have no order."""
EXPECTED = {
    "int_type": "int",
    "float_type": "float",
    "string_type": "str",
    "bool_type": "bool",
    "tuple_type": "a list",
    "dict_type": "settings (name: value)",
    "model_type": "settings (name: value)",
}
"""Pydantic's error to the type that it asks for."""
BOUNDS = {"ge": "less than", "le": "more than", "gt": "not above", "multiple_of": "not a multiple of"}
"""Pydantic's bound to what a value outside of it is."""


class _Repr(reprlib.Repr):
    """Values in messages: at most two lines of a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200

    def repr_int(self, x: int, level: int) -> str:
        """Return an integer; Python refuses to write one of more than 4300 digits, which YAML can hold in hex."""
        return super().repr_int(x, level) if x.bit_length() < 10_000 else f"a number of {x.bit_length()} bits"


_repr = _Repr().repr


def unless(fault: Callable[[Any], str | None]) -> AfterValidator:
    """Return a validator that refuses a value of which `fault` says something."""

    def check(value: Any) -> Any:
        if text := fault(value):
            raise ValueError(text)
        return value

    return AfterValidator(check)


class FaultsError(ValueError):
    """Faults found by a validator; each line begins with a setting of the validator's model: `start: is after end`."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = list(lines)
        super().__init__("; ".join(self.lines))


class Settings(BaseModel):
    """A group of settings. A field's `title` is the command-line option that messages name instead of the field."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    RENAMED: ClassVar[dict[str, str]] = {}
    """Earlier name of a setting to its present name."""

    def contradictions(self) -> Iterable[str]:
        """Return how right settings contradict each other, a line each that begins with a setting's name."""
        return ()

    @model_validator(mode="after")
    def _together(self) -> Self:
        if lines := list(self.contradictions()):
            raise FaultsError(lines)
        return self

    def __init__(self, **values: Any) -> None:
        """Raise ConfigError with every fault."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_faults(error, type(self), "")) from None

    # Without this mark, pydantic builds nested settings through __init__, which would stop at the first group's faults
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def load(cls, values: Any, path: str = "") -> tuple[Self | None, list[str]]:
        """Return the checked settings, or None and every fault, a line each; names in the lines begin with `path`."""
        try:
            return cls.model_validate(dict(values) if isinstance(values, Mapping) else values), []
        except ValidationError as error:
            return None, _faults(error, cls, path)

    def replaced(self, **changes: Any) -> Self:
        """Return a checked copy with some settings changed. Raises ConfigError."""
        return type(self)(**(dict(self) | changes))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        out: dict[str, Any] = json.loads(json.dumps(self.model_dump()))
        return out


def group(field: FieldInfo | None) -> type[Settings] | None:
    """Return the class of a field that holds a group of settings."""
    hints = (field.annotation, *get_args(field.annotation)) if field else ()
    return next((hint for hint in hints if isinstance(hint, type) and issubclass(hint, Settings)), None)


def bounds(field: FieldInfo | None) -> tuple[Any, Any]:
    """Return the least and the greatest value that a field allows; None: any."""
    given = field.metadata if field else []
    low, high = ([value for rule in given if (value := getattr(rule, end, None)) is not None] for end in ("ge", "le"))
    return (low or [None])[0], (high or [None])[0]


def _faults(error: ValidationError, kind: type[Settings], path: str) -> list[str]:
    lines: list[str] = []
    for found in error.errors(include_url=False):
        owner, field, prefix, name = _place(kind, found["loc"], path)
        cause = found.get("ctx", {}).get("error")
        if isinstance(cause, FaultsError):
            lines += [prefix + line for line in cause.lines]
        else:
            lines.append(f"{name}: {cause or _reason(found, owner, field)}")
    return lines


def _place(
    kind: type[Settings], location: tuple[int | str, ...], path: str
) -> tuple[type[Settings], FieldInfo | None, str, str]:
    """Return the group and field at a pydantic location, the prefix of names in that group, and the field's name."""
    owner, field, prefix, name = kind, None, path, path.removesuffix(".")
    inner: type[Settings] | None = kind
    for part in location:
        if inner:
            owner, prefix = inner, f"{name}." if field else path
            field = owner.model_fields.get(str(part))
            name, inner = f"{prefix}{(field and field.title) or part}", group(field)
        elif not isinstance(part, int):
            name += f".{part}" if part != "[key]" else ""
        elif not (field and field.title):
            name += f"[{part}]"
    return owner, field, f"{name}." if inner and field else prefix, name


def _reason(found: ErrorDetails, owner: type[Settings], field: FieldInfo | None) -> str:
    code, value, rule = found["type"], _repr(found["input"]), found.get("ctx", {})
    if code in ("extra_forbidden", "invalid_key"):
        name = str(found["loc"][-1])
        new = owner.RENAMED.get(name)
        return f"renamed to {new}" if new else f"unknown setting{nearest(name, list(owner.model_fields))}"
    if code == "literal_error":
        known = [str(one) for one in get_args(field and field.annotation)]
        return f"{value} is not one of {', '.join(known)}{nearest(value[1:-1], known)}"
    if code == "float_type" and type(found["input"]) is int:
        return f"{value} is too large"
    if None not in (both := bounds(field)) and ("ge" in rule or "le" in rule):
        return f"{value} is outside {both[0]}..{both[1]}"
    for name, text in BOUNDS.items():
        if name in rule:
            return f"{value} is {text} {rule[name]:g}"
    if code in EXPECTED:
        return f"expected {EXPECTED[code]}, not {value}"
    plain = {
        "missing": "is missing",
        "string_too_short": "is empty",
        "finite_number": f"{value} is not a finite number",
    }
    return plain.get(code) or found["msg"]
