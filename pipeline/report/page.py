"""Shared parts of all HTML pages: escaping, content security policy, embedded pictures."""

import base64
import functools
import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.storage.keys import shown


def filled(
    template: str,
    css: str,
    js: str | None = None,
    *,
    images: str = "data:",
    filters: Mapping[str, Callable[..., str]] | None = None,
    **values: Any,
) -> str:
    """Return the page of a template with `css`, `js`, `policy`, `version` and `values`.

    Every value is escaped; unprintable characters are made visible.
    """
    given = {"css": Markup(css), "policy": policy(css, js, images), "version": version("dladiff")}
    if js is not None:
        given["js"] = Markup(js)  # not escaped: the policy holds the digests of css and js
    return _template(template, tuple((filters or {}).items())).render(**given, **values)


@functools.cache
def _template(name: str, filters: tuple[tuple[str, Callable[..., str]], ...]) -> jinja2.Template:
    """Compile a template, once a process."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda v: shown(v) if isinstance(v, str) and not isinstance(v, Markup) else v,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= dict(filters)
    return templates.get_template(name)


def asset(*names: str) -> str:
    """Return the concatenated files of the templates folder."""
    return "".join((files("pipeline.report") / "templates" / name).read_text("utf-8") for name in names)


def policy(style: str, script: str | None = None, images: str = "data:") -> str:
    """Return a Content-Security-Policy that allows only this style, this script and these pictures."""
    scripts = f"; script-src {_digest(script)}" if script is not None else ""
    own = f"default-src 'none'; img-src {images}; style-src {_digest(style)}{scripts}"
    return f"{own}; base-uri 'none'; form-action 'none'"


def embedded(data: bytes, kind: str = "image/webp") -> str:
    """Return the `data:` URI of a picture, for `src`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
