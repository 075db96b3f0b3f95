"""Every command and every snippet of README.md runs, in order, as one session of one reader.

A fenced ``console`` block gives its lines that begin with ``$``; a ``python`` block is a script. A block that cannot be
run here is preceded by ``<!-- not run: the reason -->``.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
FENCE = re.compile(
    r"^(?P<skip><!-- not run: \S.*? -->\n\n?)?```(?P<kind>console|python)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
# What was started in the background is ended, by its number, however the session ends.
PROLOGUE = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"


def session(readme: str) -> str:
    """The shell script that does what the README tells a reader to do."""
    blocks = (block for block in FENCE.finditer(readme) if block["skip"] is None)
    return PROLOGUE + "\n".join(
        _console(block["body"]) if block["kind"] == "console" else _python(block["body"]) for block in blocks
    )


def _console(body: str) -> str:
    commands = [line[2:] for line in body.splitlines() if line.startswith("$ ")]
    assert commands, f"a console block without a line that begins with '$ ':\n{body}"
    return "\n".join(f"printf '%s\\n' {shlex.quote('$ ' + command)}\n{command}" for command in commands)


def _python(body: str) -> str:
    return f"python - <<'END_OF_SNIPPET'\n{body}END_OF_SNIPPET"


@pytest.mark.timeout(180)
def test_the_readme_runs(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", session(README)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "HOME": str(tmp_path), "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_make_target_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"^\$ make ([a-z ]+)$", README, re.MULTILINE)
    assert {target for line in named for target in line.split()} <= targets


def test_blocks_are_found_and_the_marked_ones_left_out() -> None:
    skipped = "<!-- not run: needs a cluster -->\n```python\nno()\n```\n"
    script = session(f"```console\n$ a 'b'\nout\n```\n{skipped}```python\nyes()\n```\n")
    assert "\na 'b'\n" in script
    assert "yes()" in script
    assert "no()" not in script
    assert "\nout" not in script
