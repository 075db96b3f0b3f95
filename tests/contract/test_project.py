"""The project's own files: what CI runs, what is pinned, and what is shipped."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fastio", "fastio_server", "fastio_client", "fastio_bench")


def fake_make(tmp_path: Path, failing: str) -> dict[str, str]:
    """An environment whose `make` notes its targets in `ran` and fails for ``failing`` with 3."""
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/ran\n[ "$1" = "{failing}" ] && exit 3\nexit 0\n')
    make.chmod(make.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize(("failing", "code"), [("nothing", 0), ("check", 3), ("test", 3), ("slow", 3)])
def test_ci_runs_every_part_and_its_exit_code_tells(tmp_path: Path, failing: str, code: int) -> None:
    env = fake_make(tmp_path, failing)
    done = subprocess.run(["bash", ".ci/run"], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == code
    assert (tmp_path / "ran").read_text().split() == ["check", "test", "slow"]


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    names = {name.lower().replace("_", "-") for name in pinned}
    assert {re.split(r"[<>=!~\[; ]", item)[0].lower() for item in wanted} <= names
    assert pinned["torch"] == "2.13.0"


def test_the_wheel_carries_four_typed_packages_and_works(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, timeout=300, stdin=subprocess.DEVNULL)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in held if ".dist-info" not in name} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= held

    # Dependencies come from the environment of this test: the wheel must work, not the package index.
    site = next(Path(item) for item in sys.path if item.endswith("site-packages"))
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    target = next(home.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(target)
    script = f"import sys; sys.path.append({str(site)!r}); import fastio, fastio_client; print(fastio.__file__)"
    run = [str(home / "bin/python"), "-c", script]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(home)
