"""The pages hold together: what they link to exists, and the README stays short."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from exporter.cli.main import app
from exporter.tasks import TASKS

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
OTHERS = sorted(
    [
        ROOT / "CHANGELOG.md",
        *(page for top in ("benchmarks", "exporter", "models") for page in (ROOT / top).rglob("*.md")),
    ]
)
MOST_WORDS = 900
COMMANDS = re.compile(r"`((?:export-circuit |--)[^`]+)`|^ {4}(export-circuit .*)$", flags=re.MULTILINE)
OTHERS_OPTIONS = {"--help", "--benchmark-disable", "--cases"}  # of every command, and of pytest


def read_prose(page: Path) -> str:
    """A page without its code, in which brackets are no links."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^ {4,}\S.*$", "", re.sub(r"`[^`\n]*`", "code", text), flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", read_prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b\n[x](gone.md) [y](#a-b) [z](#c) [w](https://a.b)\n`[v](code)`\n```\n[u](code)\n```\n")
    assert broken_links(page) == ["gone.md", "#c"]


def test_every_page_can_be_reached_from_the_readme() -> None:
    links = set(re.findall(r"\]\(docs/([\w-]+\.md)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md", "api.md"} == links


def test_paths_that_pages_name_exist() -> None:
    missing = set()
    for page in PAGES:
        named = re.findall(
            r"`((?:exporter|tests|benchmarks|examples|models)/[\w./]*)`", page.read_text(encoding="utf-8")
        )
        missing |= {f"{page.name}: {path}" for path in named if not (ROOT / path).exists()}
    assert missing == set()


def read_options() -> set[str]:
    """The options of all commands."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    parameters = [parameter for command in (group, *group.commands.values()) for parameter in command.params]
    return {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}


def test_options_that_pages_name_exist() -> None:
    known, missing = read_options() | OTHERS_OPTIONS, set()
    for page in PAGES:
        for code in COMMANDS.findall(page.read_text(encoding="utf-8")):
            named = re.findall(r"(?<= )--[a-z][\w-]*", f" {''.join(code)}")
            missing |= {f"{page.name}: {option}" for option in named if option not in known}
    assert missing == set()


def test_the_readmes_figures_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script: Any = importlib.import_module("small_circuits")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    stored = json.loads(script.RESULTS.read_text(encoding="utf-8"))
    assert {run["key"]["task"] for run in stored} >= set(TASKS)
    for page, render in ((script.README, script.render_short), (script.PAGE, script.render_table)):
        text = page.read_text(encoding="utf-8")
        assert text.split(script.START)[1].split(script.END)[0].strip() == render(stored).strip()
    unseen = next(
        run for run in stored if run["key"] == {"model": "bundled", "task": "ioi", "heal": "distil", "seed": 0}
    )
    prose = " ".join(readme.split())
    for found in unseen["manifest"]["ood"].values():  # where ioi fails, with the dense model's own figure
        assert all(f"on {100 * found[who]['accuracy']:.1f} %" in prose for who in ("circuit", "dense"))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS
