"""How photos become identities: each file holds one record (`LAYOUT`); the list of names derives from them."""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Literal

from pipeline.sources.layouts.record import Layout

_modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
LAYOUTS: dict[str, Layout] = {
    vars(module)["LAYOUT"].name: vars(module)["LAYOUT"] for module in _modules if "LAYOUT" in vars(module)
}
"""Name to record, in alphabetical order; `auto` is the default."""

if TYPE_CHECKING:
    LayoutName = str
else:
    LayoutName = Literal[tuple(LAYOUTS)]
"""Name of a layout."""
