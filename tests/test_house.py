"""The rules of the house, counted from the code: no circle of files, one meaning for a name, configurations that cost nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("flywheel", "engine", "generators", "labeling", "pipelines", "training")
# A family's own: its front door, its work, its report, what it changes in other people's libraries.
FAMILY = {"stage.py", "work.py", "report.py", "patches.py", "__init__.py"}
HEAVY = {
    "torch", "vllm", "trl", "transformers", "peft", "numba", "llvmlite", "numpy", "polars", "pyarrow", "datasets", "openai", "httpx",
    "argilla", "jinja2", "jsonschema", "tokenizers", "sklearn", "fasttext", "phonenumbers",
}  # fmt: skip
STAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["flywheel.stages"]


def files(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(file: Path, known: set[str]) -> set[str]:
    """The modules of ours that a file imports, wherever in it: at the top, inside a function, for the type checker alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name is a file of that folder, or stands in the module itself.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(names & known or {node.module})
    return found & known


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected components of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            members = set(stack[stack.index(node) :])
            del stack[stack.index(node) :]
            if len(members) > 1:
                found.append(members)

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


def test_no_file_imports_itself_by_way_of_others() -> None:
    sources = {module_of(file): file for file in files(*ROOMS)}
    assert circles({name: imports_of(file, set(sources)) for name, file in sources.items()}) == []


@pytest.mark.parametrize("kind", STAGES)
def test_the_work_that_a_stage_names_takes_that_stage(kind: str) -> None:
    module, _, name = STAGES[kind].partition(":")
    stage = getattr(import_module(module), name)
    module, _, name = stage.work.partition(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
    work = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    assert [ast.unparse(argument.annotation) for argument in work.args.args if argument.annotation] == [
        stage.__name__,
        "Job",
    ]


def test_a_file_name_means_one_thing() -> None:
    places: dict[str, list[Path]] = defaultdict(list)
    for file in files(*ROOMS):
        if file.name not in FAMILY:
            places[file.name].append(file.relative_to(ROOT))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_a_class_name_means_one_thing() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in files(*ROOMS):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module_of(file))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("door", sorted({value.partition(":")[0] for value in STAGES.values()}))
def test_a_front_door_loads_no_heavy_library(door: str) -> None:
    program = f"import sys, {door}\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not HEAVY & set(loaded.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["argilla", "--help"], ["stages"], ["schema"], ["plan", "recipes/quickstart.yaml"]],
    ids=" ".join,
)
def test_looking_at_kinds_and_plans_loads_no_heavy_library(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys, flywheel.commandline\nfrom engine.cli import app\n"
        f"app({arguments!r}, standalone_mode=False)\nprint(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PATH": "/usr/bin:/bin", "FLYWHEEL_STORE": str(tmp_path)},
    )  # fmt: skip
    loaded = set(done.stderr.split())
    # A plan opens the store, which knows Arrow's types, and has Polars and Jinja check what this recipe holds of theirs.
    allowed = {"plan": {"pyarrow", "numpy", "polars", "jinja2"}}.get(arguments[0], set[str]())
    assert not (HEAVY - allowed | {"pyarrow.compute"}) & loaded
