"""Offline pages: a template, its style and script inside, and a policy that lets nothing else in."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

from open_clip_triplet.errors import UsageError


def render(name: str, **values: Any) -> Iterator[str]:
    """The page of ``NAME.html.j2`` with ``NAME.css`` and ``NAME.js`` in it, piece by piece.

    Raises:
        UsageError: Jinja2 is not installed.
    """
    style, script = (_resource(f"{name}.{suffix}") for suffix in ("css", "js"))
    return environment().get_template(f"{name}.html.j2").generate(
        style=style, script=script, policy=policy(style, script), **values
    )


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy: this style, this script, images from beside the page; no network."""
    return (
        f"default-src 'none'; style-src '{_sha(style)}'; script-src '{_sha(script)}'; "
        "img-src 'self' file: data: blob:; base-uri 'none'; form-action 'none'"
    )


def _sha(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _resource(name: str) -> str:
    return resources.files("open_clip_triplet.inspect").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def environment():
    try:
        import jinja2
    except ImportError as error:
        raise UsageError("pages need Jinja2: install open_clip_triplet with its extra `inspect`") from error
    from markupsafe import Markup

    made = jinja2.Environment(loader=jinja2.FunctionLoader(_resource), autoescape=True, trim_blocks=True)
    made.filters["json"] = lambda value: Markup(script_json(value))
    made.filters["code"] = Markup  # our own style and script, checked by the policy's hash
    made.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return made


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element or opens a comment.

    >>> script_json("</script><!--")
    '"\\\\u003c/script\\\\u003e\\\\u003c!--"'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def shorten(details: dict, limit: int) -> dict:
    """``details`` as plain JSON of at most about ``limit`` characters; long values are cut, then left out."""
    kept: dict[str, Any] = {}
    left = limit
    for name, value in details.items():
        try:
            text = json.dumps(value, ensure_ascii=False, default=str)
        except RecursionError:
            text = "…" * (left + 1)
        if len(text) > left:
            kept[name] = text[: max(left, 0)] + "…"
        else:
            kept[name] = _finite(value)
        left -= len(text)
        if left <= 0:
            break
    return kept


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON has no word for, as text."""
    if isinstance(value, dict):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value
