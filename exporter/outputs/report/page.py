"""The page as a whole: sections, templates, and what keeps text from outside harmless.

Every text that a template shows is escaped twice over: control and direction marks are written out (`escape_controls`),
then HTML is (autoescape). Should one slip through all the same, the page's own policy lets nothing be loaded, and no
script run but the one whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from exporter.errors import InputError
from exporter.escaping import escape_controls
from exporter.files import OutputSet
from exporter.files.names import REPORT_SUFFIX
from exporter.files.reading import open_regular
from exporter.outputs.manifest import Manifest
from exporter.outputs.report import words
from exporter.outputs.report.attention import draw_attention
from exporter.outputs.report.cost import draw_cost
from exporter.outputs.report.grid import draw_grid
from exporter.outputs.report.making import describe_making
from exporter.outputs.report.others import Comparison, comparison_path, draw_others, load_comparison
from exporter.outputs.report.path import draw_path
from exporter.outputs.report.quality import draw_quality
from exporter.outputs.report.summary import summarise

Section = Callable[[Manifest, Comparison | None], Any]
"""What a section shows of a manifest and of the comparison beside it, or None where there is nothing of it."""


def _alone(draw: Callable[[Manifest], Any]) -> Section:
    return lambda manifest, comparison: draw(manifest)


SECTIONS: dict[str, tuple[str, Section]] = {
    "grid": ("What it keeps", _alone(draw_grid)),
    "path": ("How it got there", _alone(draw_path)),
    "quality": ("How good it is", _alone(draw_quality)),
    "cost": ("What it costs", _alone(draw_cost)),
    "others": ("Against other ways", lambda manifest, comparison: draw_others(comparison)),
    "prompts": ("Ten prompts", lambda manifest, comparison: manifest.prompts or None),
    "attention": ("Where its heads look", _alone(draw_attention)),
    "making": ("How it was made", _alone(describe_making)),
}
"""By name, which is that of the template and of the anchor: the heading, and what makes the data."""

_MARK = "<!doctype html>\n<!-- export-circuit report -->\n"
_NUMBERS = {name: getattr(words, name) for name in ("write_share", "write_short", "write_count", "write_bytes")}


def render_report(manifest: Manifest, comparison: Comparison | None = None) -> str:
    """The page of a manifest, as text: equal for equal ones. Raises InputError for figures that make no page."""
    environment = _make_environment()
    try:
        drawn = {name: draw(manifest, comparison) for name, (_, draw) in SECTIONS.items()}
        summary = summarise(manifest)
    except (ValueError, ArithmeticError, LookupError) as error:
        raise InputError(f"the manifest has figures that cannot be drawn ({error!r:.80}); export again") from error
    script = _read_template("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _MARK + environment.get_template("page.html").render(
        summary=summary,
        sections={name: (SECTIONS[name][0], data) for name, data in drawn.items() if data is not None},
        style=Markup(_read_template("style.css")),
        script=Markup(script),
        script_hash=digest,
    )


def write_report(manifest: Path, out: Path | None = None, *, force: bool = False) -> Path:
    """Write the page of a manifest file, by default beside it; returns where. A report that stands there is replaced.

    A comparison beside the manifest (`comparison_path`) is drawn, too. Raises InputError: no manifest, or a comparison
    of something else; another file at the page's name, without `force`; it cannot be written.
    """
    loaded, target = Manifest.load(manifest), out or manifest.with_suffix(REPORT_SUFFIX)
    page = render_report(loaded, load_comparison(comparison_path(manifest), loaded))
    with OutputSet(target, suffixes=(REPORT_SUFFIX,), force=force or is_report(target)) as files:
        files.path(REPORT_SUFFIX).write_text(page, encoding="utf-8")
        files.commit()
    return target


def is_report(path: str | Path) -> bool:
    """Whether a file is a report of ours, which may be made again in its place."""
    try:
        with open_regular(path) as file:
            return file.read(len(_MARK)) == _MARK.encode()
    except (InputError, OSError):
        return False


@cache
def _make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("exporter.outputs.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_write_out,
    )
    environment.filters |= {"token": _show_token, "prompt": _show_prompt, **_NUMBERS}
    return environment


def _write_out(value: Any) -> Any:
    """A value as a template shows it: of a text, what is not seen is written out."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else escape_controls(value)


def _show_token(token: str) -> Markup:
    """A token whose outer spaces can be seen."""
    inner = token.strip(" ")
    lead = len(token) - len(token.lstrip(" "))
    trail = len(token) - len(inner) - lead if inner else 0
    space = Markup('<span class="space">␣</span>')
    return space * lead + Markup.escape(escape_controls(inner)) + space * trail


def _show_prompt(text: str) -> Markup:
    """A prompt with its own line breaks."""
    return Markup.escape(escape_controls(text, keep="\n"))


def _read_template(name: str) -> str:
    """A style or a script as it stands: it is ours, and nothing is put into it."""
    environment = _make_environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]
