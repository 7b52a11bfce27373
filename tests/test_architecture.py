"""Who may import whom: reads the imports of every module and holds them against the rules of the architecture."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from include.settings import PROJECT_ROOT

# Package or top-level module of include/ -> what of include/ it may import.
ALLOWED: dict[str, set[str]] = {
    "schema": set(),
    "settings": set(),
    "normalize": set(),
    "sources": {"schema", "normalize"},
    "modes": {"schema"},
    "quality": {"schema"},
    "storage": {"schema"},
    "generation": {"schema", "settings", "modes", "quality", "storage", "local"},
    "publish": {"schema", "settings", "storage", "sources", "modes", "quality", "generation"},
    "ingest": {"schema", "sources", "storage"},
    "generate": {"schema", "settings", "sources", "modes", "storage", "generation", "publish", "ingest"},
    "orchestration": {"schema", "settings", "sources", "storage"},
    "local": {"settings", "storage", "sources", "modes", "generation", "publish"},
    "deployment": {"settings", "storage", "orchestration"},
    "doctor": {"schema", "settings", "sources", "generation", "publish", "orchestration", "local"},
    "cli": {"schema", "settings", "local", "storage", "publish", "deployment", "doctor"},
}
# What plugins/ may import of include/: it shows, so nothing that ingests, generates or publishes.
SHOWN = {"schema", "settings", "normalize", "sources", "modes", "quality", "storage", "orchestration"}
# Within include/, only these may import the package on the left.
HEAVY = {"airflow": {"orchestration"}, "psycopg": {"storage", "local", "orchestration"}}
PLUGINS = sorted((PROJECT_ROOT / "plugins").rglob("*.py"))
MODULES = sorted(path for path in (PROJECT_ROOT / "include").rglob("*.py") if path.parent.name != "versions")


def part_of(path: Path) -> str:
    first = path.relative_to(PROJECT_ROOT / "include").parts[0]
    return first.removesuffix(".py")


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "include":
                found.update(f"include.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PROJECT_ROOT)))
def test_imports_follow_the_architecture(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("include.")} - {part}
    assert ours <= ALLOWED[part], f"{part} must not import {sorted(ours - ALLOWED[part])}"
    for package, users in HEAVY.items():
        if part not in users:
            assert not any(name.split(".")[0] == package for name in imports(path)), f"{part} imports {package}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PROJECT_ROOT)))
def test_models_and_datasets_are_imported_inside_functions_only(path: Path) -> None:
    at_import = {name.split(".")[0] for name in imports(path, top_level_only=True)}
    assert not at_import & {"torch", "transformers", "datasets", "openai", "pynvml", "boto3", "botocore"}


def test_nothing_imports_from_dags() -> None:
    for path in MODULES:
        assert not any(name.split(".")[0] in ("dags", "plugins") for name in imports(path))


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: str(path.relative_to(PROJECT_ROOT)))
def test_plugins_show(path: Path) -> None:
    names = imports(path)
    ours = {name.split(".")[1] for name in names if name.startswith("include.")}
    assert ours <= SHOWN, f"plugins must not import {sorted(ours - SHOWN)}"
    assert not any(name.split(".")[0] in ("dags", "torch", "transformers", "datasets") for name in names)
    if path.parent.name == "console":  # the pages know nothing of Airflow; the plugin that mounts them does
        assert not any(name.split(".")[0] == "airflow" for name in names)
