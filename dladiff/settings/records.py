"""Records: name, needs and function of a compared method, an attack, a preprocessing and so on, each in its own file.

Most of those files import torch, and the driver lists them without torch. So `read_records` reads the record from the
syntax tree of its file and runs nothing (as setuptools reads a version by `attr:`). `Record.load` imports the file.
"""

import ast
import importlib
import importlib.util
import operator
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

R = TypeVar("R", bound="Record")
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {ast.Mult: operator.mul, ast.Div: operator.truediv}


@dataclass(frozen=True, kw_only=True)
class Record:
    """Fields that every record has."""

    name: str
    """Name on the command line, in tables and in the documentation."""
    function: str
    """Name of the function, in the record's file."""
    module: str = ""
    """Dotted name of the record's module; set by `read_records`."""

    def load(self, function: str = "") -> Any:
        """Import the record's file and return its function, or another one of it."""
        return getattr(importlib.import_module(self.module), function or self.function)


def read_records(package: str, kind: type[R], known: Mapping[str, Any]) -> list[R]:
    """Return the records of a kind in the files of a package, by file name.

    A record is a value at the top of its file: `METHOD = Method(...)`, or a tuple of such calls. Its arguments are
    literals, products and quotients of numbers, names and calls of `known`, and dicts of these.
    """
    names = {kind.__name__: kind, **known}
    return [
        replace(record, module=module)
        for module, tree in _sources(package)
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        for record in _called(statement.value, kind.__name__, names)
    ]


def _sources(package: str) -> Iterator[tuple[str, ast.Module]]:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    for found in pkgutil.iter_modules(spec.submodule_search_locations):
        file = found.module_finder.find_spec(found.name, None)
        assert file is not None
        yield f"{package}.{found.name}", ast.parse(file.loader.get_source(found.name))  # type: ignore[union-attr]


def _called(node: ast.expr, kind: str, names: Mapping[str, Any]) -> list[Any]:
    calls = node.elts if isinstance(node, ast.Tuple) else [node]
    return [_value(call, names) for call in calls if isinstance(call, ast.Call) and ast.unparse(call.func) == kind]


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Call):
        values = [_value(value, names) for value in node.args]
        return _value(node.func, names)(*values, **{str(k.arg): _value(k.value, names) for k in node.keywords})
    if isinstance(node, ast.Dict):
        return {
            _value(key, names): _value(value, names) for key, value in zip(node.keys, node.values, strict=True) if key
        }
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, names), _value(node.right, names))
    return ast.literal_eval(node)
