"""What the modules keep to that are compiled for an installed package, as far as their source says it.

That they do the same then is what `make compiled` is for: all tests, on a compiled copy.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from mvccstore import Replicator
from tools.compiled import MODULES, PACKAGE, ROOT

COMPILED = [ROOT / PACKAGE / f"{module}.py" for module in MODULES]
C_KEYWORDS = {"_thread", "_Thread_local", "_Bool", "_Atomic"}


def classes(path: Path) -> Iterator[ast.ClassDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def bases(node: ast.ClassDef) -> set[str]:
    plain = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
    return {ast.unparse(base).rpartition(".")[2] for base in plain}


def is_open(node: ast.ClassDef) -> bool:
    return any("allow_interpreted_subclasses=True" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize("path", COMPILED, ids=MODULES)
def test_module_is_there_and_can_be_compiled(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & C_KEYWORDS


def test_a_class_says_so_if_one_that_is_not_compiled_derives_from_it() -> None:
    made = [node for path in COMPILED for node in classes(path)]
    closed = {node.name for node in made if not is_open(node)}
    assert closed
    others = [path for folder in (PACKAGE, "tests") for path in (ROOT / folder).rglob("*.py") if path not in COMPILED]
    derived = [(path.name, node.name) for path in others for node in classes(path) if bases(node) & closed]
    assert not derived


@pytest.mark.parametrize("face", ["mvccstore", "mvccstore.aio", "mvccstore.server", "mvccstore.testing"])
def test_what_programs_derive_from_is_not_compiled(face: str) -> None:
    """A class that is not compiled can derive from no protocol that is, however open that says it is."""
    module = import_module(face)
    compiled = {f"{PACKAGE}.{name.replace('/', '.')}" for name in MODULES}
    found = [getattr(module, name) for name in module.__all__]
    meant = [one for one in found if isinstance(one, type) and getattr(one, "_is_protocol", False)]
    assert not [one for one in meant if one.__module__ in compiled]
    if face == PACKAGE:
        assert Replicator in meant
