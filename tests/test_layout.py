"""The pipeline's order: nothing earlier imports anything later, and every package is shipped."""

from __future__ import annotations

import ast
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "exporter"

# Floors, from the ground up (docs/design.md); a module imports from the floors below its own, or from its own folder.
ORDER = [
    "errors", "checks", "escaping",  # what all of them raise, and say
    "files", "circuit",  # the disk; plain data
    "tasks", "metrics",  # prompts, and what is measured of logits
    "network",  # the model that all others are about
    "loading", "rewrite",  # where a dense one comes from; how it is made small
    "graph",
    "runtime",
    "verify",
    "evidence",
    "search",
    "outputs", "bench",
    "job",
    "studies",  # many jobs
    "serve",  # a bundle over HTTP
    "__init__",  # the public API
    "cli", "__main__",
    "pytest_plugin",
]  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def stage_of(file: Path) -> str:
    """The module's name, or for a sub-package the package's."""
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_stages(source: str, file: Path) -> set[str]:
    """The stages that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{file.name}:{node.lineno}: write the import in full, not relative")
        elif isinstance(node, ast.ImportFrom) and node.module == "exporter":
            names = [f"exporter.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "exporter":
                known = len(parts) > 1 and (parts[1] in ORDER)
                found.add(parts[1] if known else "__init__")
    return found


def backward_arrows(source: str, file: Path) -> list[str]:
    own = stage_of(file)
    allowed = {*ORDER[: ORDER.index(own)], *([own] if file.parent != PACKAGE else [])}
    return [f"{own} imports {stage}" for stage in sorted(imported_stages(source, file) - allowed)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_arrow_points_backwards(file: Path) -> None:
    assert stage_of(file) in ORDER, f"{file.name} is new: give it its place in ORDER"
    assert backward_arrows(file.read_text(encoding="utf-8"), file) == []


def test_no_modules_of_a_package_import_each_other_in_a_circle() -> None:
    imports = {}
    for file in FILES:
        nodes = [
            node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
        ]
        imports[".".join(file.relative_to(ROOT).with_suffix("").parts)] = {str(node.module) for node in nodes}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_the_order_has_no_module_that_is_gone() -> None:
    assert set(ORDER) == {stage_of(file) for file in FILES}
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize(
    ("source", "arrow"),
    [
        ("from exporter.search.greedy import find_circuit", "circuit imports search"),
        ("import exporter.cli.main", "circuit imports cli"),
        ("from exporter import verify", "circuit imports verify"),
        ("from exporter import load_model", "circuit imports __init__"),
        ("def f():\n    import exporter", "circuit imports __init__"),
        ("if TYPE_CHECKING:\n    from exporter.tasks.ioi import x", "circuit imports tasks"),
        ("from exporter.verify.oracle import x", "circuit imports verify"),
    ],
)
def test_an_arrow_that_points_backwards_is_seen(source: str, arrow: str) -> None:
    assert backward_arrows(source, PACKAGE / "circuit" / "circuit.py") == [arrow]


def test_allowed_imports_pass() -> None:
    source = "import torch\nfrom exporter.errors import InputError\nfrom exporter.tasks.task import Task"
    assert backward_arrows(source, PACKAGE / "tasks" / "ioi.py") == []


def test_at_most_six_modules_lie_at_the_top() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_and_functions_are_short(file: Path) -> None:
    """Files of at most 300 lines, functions of at most 50, and 40 where it is a command (with its decorator)."""
    source = file.read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    lines = {f.name: (f.end_lineno - f.lineno + 1, 40 if "command" in ast.dump(ast.List(f.decorator_list)) else 50)
             for f in functions}  # fmt: skip
    long = {name: n for name, (n, most) in lines.items() if n > most}
    assert (source.count("\n") <= 300, long) == (True, {})


# The classes that only these ask for: everybody else asks a site, or takes what a circuit file says.
KINDS = {"Attention", "FeedForward", "HeadSite", "MLPSite", "NeuronSite", "Head", "MLP", "Neuron"}
MAY_ASK = ("network", "circuit", "loading/families")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_sublayer_or_component_is_told_apart_by_its_class(file: Path) -> None:
    if str(file.relative_to(PACKAGE)).startswith(MAY_ASK):
        return
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    asked = [call.args[1] for call in calls if getattr(call.func, "id", "") == "isinstance" and len(call.args) == 2]
    names = {node.id for kinds in asked for node in ast.walk(kinds) if isinstance(node, ast.Name)}
    assert names & KINDS == set()


def test_every_package_is_shipped() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent.relative_to(ROOT) for file in FILES}
    packages = {".".join(folder.parts) for folder in folders} | {"exporter.bundled"}
    assert set(setup["packages"]) == packages


def test_every_data_file_is_shipped() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = set()
    for package, patterns in setup["package-data"].items():
        folder = ROOT / setup["package-dir"].get(package, package.replace(".", "/"))
        shipped |= {file for pattern in patterns for file in folder.glob(pattern)}
    data = {file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc", ".md")}
    assert data - shipped == set()
