"""Functions, classes, files and constructors stay small, so that growth is a decision.

Counted on the syntax tree of the four packages: a function from its `def` to its last line, less its docstring; a class
from its first line to its last; public methods without properties, which read as attributes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fastio", "server/fastio_server", "client/fastio_client", "bench/fastio_bench")

FILE_LINES = 300
FUNCTION_LINES = 40
CLASS_LINES = 200
PUBLIC_METHODS = 10
CONSTRUCTOR_PARAMETERS = 7

# "path::qualified name": (what is over, the reason). An entry that is no longer needed fails the test.
EXEMPT: dict[str, tuple[str, str]] = {}

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def over_budget(source: str, path: str) -> Iterator[tuple[str, str]]:
    """(``path::name``, what is over) for everything in ``source`` that outgrew its budget."""
    lines = len(source.splitlines())
    if lines > FILE_LINES:
        yield path, f"{lines} lines, a file may have {FILE_LINES}"
    for name, node in _definitions(ast.parse(source), path + "::"):
        yield from ((name, text) for text in (_class(node) if isinstance(node, ast.ClassDef) else _function(node)))


def _definitions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef | _Function]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | _Function):
            yield prefix + node.name, node
            yield from _definitions(node, f"{prefix}{node.name}.")
        else:
            yield from _definitions(node, prefix)


def _function(node: _Function) -> Iterator[str]:
    lines = _lines(node) - (_lines(node.body[0]) if ast.get_docstring(node) is not None else 0)
    if lines > FUNCTION_LINES:
        yield f"{lines} lines, a function may have {FUNCTION_LINES}"
    parameters = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs) - 1
    if node.name == "__init__" and parameters > CONSTRUCTOR_PARAMETERS:
        yield f"{parameters} parameters, a constructor may have {CONSTRUCTOR_PARAMETERS}"


def _class(node: ast.ClassDef) -> Iterator[str]:
    if _lines(node) > CLASS_LINES:
        yield f"{_lines(node)} lines, a class may have {CLASS_LINES}"
    methods = [item for item in node.body if isinstance(item, _Function) and not item.name.startswith("_")]
    public = {item.name for item in methods if not any("property" in ast.unparse(d) for d in item.decorator_list)}
    if len(public) > PUBLIC_METHODS:
        yield f"{len(public)} public methods, a class may have {PUBLIC_METHODS}"


def _lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_everything_is_within_its_budget() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert files
    found = [item for path in files for item in over_budget(path.read_text(), str(path.relative_to(ROOT)))]
    excess = [f"{name}: {text}" for name, text in found if name not in EXEMPT]
    assert not excess, "over budget:\n" + "\n".join(excess)
    assert set(EXEMPT) <= {name for name, _ in found}, "an exemption that is no longer needed"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\n" * 301, ["f.py: 301 lines, a file may have 300"]),
        ("def f():\n" + "    x = 1\n" * 40, ["f.py::f: 41 lines, a function may have 40"]),
        ("def f():\n    '''" + "\n" * 50 + "'''\n" + "    x = 1\n" * 39, []),
        ("class C:\n" + "    x = 1\n" * 200, ["f.py::C: 201 lines, a class may have 200"]),
        (
            "class C:\n" + "".join(f"    def m{i}(self): ...\n" for i in range(11)),
            ["f.py::C: 11 public methods, a class may have 10"],
        ),
        (
            "class C:\n    def __init__(self, a, b, c, d, *, e, f, g, h): ...\n",
            ["f.py::C.__init__: 8 parameters, a constructor may have 7"],
        ),
    ],
)
def test_each_budget_is_counted(source: str, expected: list[str]) -> None:
    assert [f"{name}: {text}" for name, text in over_budget(source, "f.py")] == expected
