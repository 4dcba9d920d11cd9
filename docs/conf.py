"""The site of docs/*.md: `make docs`. The API reference is made from the docstrings of `exporter.__all__`.

Docstrings are plain text with names in backticks, no reStructuredText: they are shown as they are written.
"""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from typing import Any

from sphinx.application import Sphinx

import exporter

project = "export-circuit"
release = version_of("export-circuit")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "The circuit of one task, as a small exact ONNX model"}
html_show_copyright = False
html_copy_source = False
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"


def list_api(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append a directive for each public name to the page of the API."""
    if docname != "api":
        return
    for name in sorted(exporter.__all__, key=str.lower):
        value = getattr(exporter, name)
        kind, options = "autofunction", ""
        if isinstance(value, type):
            kind = "autoexception" if issubclass(value, Exception) else "autoclass"
            options = ":members:\n"
        source[0] += f"\n```{{eval-rst}}\n.. {kind}:: exporter.{name}\n"
        source[0] += "".join(f"   {option}\n" for option in options.splitlines()) + "```\n"


def show_as_written(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Escape what reStructuredText would read as markup; names in backticks become literals."""
    text = "\n".join(lines)
    parts = re.split(r"(`[^`]+`)", text)
    plain = [re.sub(r"([\\*|_])", r"\\\1", part) for part in parts[::2]]
    names = [f"`{part}`" for part in parts[1::2]] + [""]
    lines[:] = "".join(f"{words}{code}" for words, code in zip(plain, names, strict=True)).split("\n")


def shorten_signature(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Defaults that are made anew as `...`, and types by their names alone; with `<factory>` Sphinx reads neither."""
    if signature is not None and "<factory>" in signature:
        signature = re.sub(r"~(?:\w+\.)*", "", signature.replace("<factory>", "..."))
    return signature, returns


def unlink_outside(app: Sphinx, docname: str, source: list[str]) -> None:
    """Links to files of the repository are for readers of the repository; on the site their text stands alone."""
    source[0] = re.sub(r"\[([^\]\n]*)\]\(\.\./[^)\s]*\)", r"\1", source[0])


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("source-read", list_api)
    app.connect("autodoc-process-docstring", show_as_written)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("source-read", unlink_outside)
