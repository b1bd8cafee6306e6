"""Style that a machine can hold: layers, sizes, names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mvccstore"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [
    *MODULES,
    *sorted((ROOT / "benchmarks").rglob("*.py")),
    *sorted((ROOT / "tools").rglob("*.py")),
    *sorted((ROOT / "tests").rglob("*.py")),
]
MODULE_LINES_MAX = 600
TEST_LINES_MAX = 1_000  # tables of cases
FUNCTION_LINES_MAX = 70

# A module may import from its own layer and those above it in this list.
LAYERS = (
    {"attributes", "errors", "types", "options", "clock", "tables"},
    {"codec", "mvcc"},
    {"engine"},
    {
        "attributing",
        "commit",
        "committer",
        "difference",
        "hub",
        "lease",
        "live",
        "maintenance",
        "opening",
        "past",
        "pins",
        "quota",
        "recipes",
        "records",
        "replicator",
        "rewind",
        "staged",
        "store",
        "subscribing",
        "subscription",
        "transfer",
        "txn",
        "upkeep",
        "view",
        "watch",
        "write",
    },
    {"mvccstore"},
    {"aio"},
    {"etcd_file"},
    {"server"},
    {"cli", "testing", "__main__"},
)
STORAGE = 2
FORBIDDEN = {
    0: {"lmdb", "sqlite3", "threading", "asyncio", "random"},
    1: {"lmdb", "sqlite3", "os", "threading", "time", "random", "asyncio"},
    2: {"asyncio", "random", "time"},
    3: {"lmdb", "sqlite3", "asyncio", "random", "time"},
    4: {"lmdb", "sqlite3", "asyncio"},
    5: {"lmdb", "sqlite3", "random", "time"},
    6: {"lmdb", "sqlite3", "asyncio", "random", "threading", "time"},
    7: {"lmdb", "sqlite3", "random", "time"},
    8: {"lmdb", "sqlite3", "asyncio"},
}
VAGUE_NAMES = {"utils.py", "helpers.py", "common.py", "base.py"}


def _name(path: Path) -> str:
    """Return the part of a module's name that says its layer."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "mvccstore" if parts == ("__init__",) else parts[0]


def _layer(name: str) -> int:
    for number, members in enumerate(LAYERS):
        if name in members:
            return number
    pytest.fail(f"{name} is in no layer")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_from_its_layer_or_above_only(path: Path) -> None:
    layer = _layer(_name(path))
    for imported in _imports(path):
        parts = imported.split(".")
        if parts[0] == "mvccstore":
            below = _layer(parts[1]) if len(parts) > 1 and _is_module(parts[1]) else _layer("mvccstore")
            assert below <= layer, f"{path.name} imports {imported}"
            if layer == STORAGE:
                assert parts[1] != "mvcc", f"{path.name} imports {imported}"
        elif not (path.name == "clock.py" and parts[0] == "time"):
            assert parts[0] not in FORBIDDEN[layer] or _may(path, parts[0]), f"{path.name} imports {imported}"


def _is_module(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def _may(path: Path, imported: str) -> bool:
    """What a part of the shell may that the others may not.

    The command's demo measures rates for people to read; nothing else outside of `clock` asks for the time. Servers
    for tests run on a loop that `testing` has.
    """
    return (_name(path), imported) in {("cli", "time"), ("testing", "asyncio")}


def test_only_the_engines_import_lmdb_and_sqlite() -> None:
    users = {_name(path) for path in MODULES for name in _imports(path) if name.split(".")[0] in {"lmdb", "sqlite3"}}
    assert users == {"engine"}


def test_no_type_checking_imports_hide_a_dependency() -> None:
    assert [str(path) for path in MODULES if "TYPE_CHECKING" in path.read_text()] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_have_a_size(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= (TEST_LINES_MAX if path.is_relative_to(ROOT / "tests") else MODULE_LINES_MAX)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = node.body[0].lineno if ast.get_docstring(node) is None else (node.body[0].end_lineno or 0)
            length = (node.end_lineno or 0) - start + 1
            assert length <= FUNCTION_LINES_MAX, f"{path.name}: {node.name} has {length} lines"


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [path for path in SOURCES if path.name in VAGUE_NAMES] == []


def test_importing_the_library_imports_no_extra() -> None:
    # `testing` is served by the server; only its clock and model are imported with it.
    server = {"server", "testing"}
    owners = {"click": {"cli"}, "rich": {"cli"}, "google": server, "hpack": server, "h11": server}
    for name, allowed in owners.items():
        users = {_name(path) for path in MODULES for found in _imports(path) if found.split(".")[0] == name}
        assert users <= allowed


def test_the_server_leaves_the_engines_alone() -> None:
    inside = {f"mvccstore.engine.{path.stem}" for path in (PACKAGE / "engine").glob("*.py")}
    found = {name for path in MODULES if _name(path) == "server" for name in _imports(path)}
    assert {name for name in found if name in inside or name.rpartition(".")[0] in inside} == set()
