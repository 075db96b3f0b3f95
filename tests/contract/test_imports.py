"""What importing costs, and what is exported: proved in fresh processes."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

PACKAGES = ("fastio", "fastio_server", "fastio_client", "fastio_bench")
TOP_LEVEL = """
import sys
before = set(sys.modules)
import {module}
loaded = sorted({{name.split(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names))
sys.stdout.write(" ".join(loaded))
"""


def loaded_by(module: str) -> set[str]:
    """Top-level names outside the standard library that are loaded once ``module`` is imported."""
    done = subprocess.run(
        [sys.executable, "-c", TOP_LEVEL.format(module=module)], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def modules_of(package: str) -> Iterator[str]:
    root = importlib.import_module(package)
    yield package
    for found in pkgutil.walk_packages(root.__path__, package + "."):
        if not found.name.endswith("__main__"):
            yield found.name


def without_torch(package: str) -> list[str]:
    return [name for name in modules_of(package) if not name.startswith("fastio_client.torch")]


@pytest.mark.parametrize(
    ("module", "allowed"),
    [("fastio", {"fastio", "numpy"}), ("fastio_client", {"fastio", "fastio_client", "numpy"})],
)
def test_importing_loads_numpy_and_the_standard_library_only(module: str, allowed: set[str]) -> None:
    assert loaded_by(module) <= allowed


@pytest.mark.parametrize("package", PACKAGES)
def test_only_the_torch_face_of_the_client_imports_torch(package: str) -> None:
    names = ", ".join(without_torch(package))
    assert "torch" not in loaded_by(names)


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_true(package: str) -> None:
    """That it is sorted is ruff's to say (RUF022: constants, classes, functions)."""
    for name in modules_of(package):
        module = importlib.import_module(name)
        exported = getattr(module, "__all__", [])
        assert len(set(exported)) == len(exported), f"{name}.__all__ names something twice"
        missing = [item for item in exported if not hasattr(module, item)]
        assert not missing, f"{name}.__all__ names what is not there: {missing}"


def test_every_module_of_the_engine_says_what_it_exports() -> None:
    modules = [importlib.import_module(name) for name in modules_of("fastio")]
    silent = [module.__name__ for module in modules if module.__doc__ and not hasattr(module, "__all__")]
    assert not silent
