"""Files of data beside the code: the paper's tables, known models, the page's template and style."""

from __future__ import annotations

import sys
from importlib.resources import files

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read(name: str) -> str:
    """A file of this package as text."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def load_toml(name: str) -> dict:
    """A TOML file of this package."""
    return tomllib.loads(read(name))
