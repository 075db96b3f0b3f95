"""The command line: what it says, where, and with which exit code; never a traceback for what a user can cause."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pyarrow as pa
import pytest

from fastio import Writer, cli
from fastio.progress import Reporter

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process: (exit code, stdout, stderr)."""

    def go(*argv: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(item) for item in argv])
        assert isinstance(ended.value.code, int)
        out, err = capfd.readouterr()
        return ended.value.code, out, err

    return go


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    with Writer(tmp_path / "squares", {"x": int, "square": int}) as writer:
        for x in range(10):
            writer.append({"x": x, "square": x * x})
    return tmp_path / "squares"


def test_inspect_prints_tables_and_json(run: Run, squares: Path) -> None:
    code, out, err = run("inspect", squares)
    assert (code, err) == (0, "")
    assert "square" in out
    code, out, err = run("inspect", squares, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["records"] == 10


def test_pack_says_what_it_wrote(run: Run, squares: Path, tmp_path: Path) -> None:
    code, out, err = run("pack", squares, tmp_path / "out", "--shuffle", "1", "--shard-bytes", "100")
    assert (code, err) == (0, "")
    assert "10 records in 2 arrow shards" in out
    assert json.loads(run("inspect", tmp_path / "out", "--json")[1])["shuffled"] == 1


def test_pack_into_lmdb(run: Run, tmp_path: Path) -> None:
    with Writer(tmp_path / "d", {"data": bytes}) as writer:
        writer.append({"data": b"x"})
    assert run("pack", tmp_path / "d", tmp_path / "out", "--format", "lmdb")[0] == 0
    assert json.loads(run("inspect", tmp_path / "out", "--json")[1])["format"] == "lmdb"


def bad_paths(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("to be or not to be\n")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("to be\n")
    with pa.OSFile(str(tmp_path / "cut.arrow"), "wb") as sink:
        with pa.ipc.new_file(sink, pa.schema([("x", pa.int64())])) as writer:
            writer.write_batch(pa.record_batch({"x": list(range(1000))}))
        size = sink.tell()
    os.truncate(tmp_path / "cut.arrow", size // 2)
    (tmp_path / "data.mdb").write_bytes(bytes(8192))
    return {path.name: path for path in tmp_path.iterdir()} | {"nowhere": tmp_path / "nowhere"}


@pytest.mark.parametrize("name", ["nowhere", "empty", "text", "texts", "cut.arrow", "data.mdb"])
@pytest.mark.parametrize("command", ["inspect", "pack"])
def test_what_is_no_dataset_is_said_in_two_lines(run: Run, tmp_path: Path, name: str, command: str) -> None:
    if (name, command) == ("texts", "pack"):
        pytest.skip("any directory of files can be packed")
    paths = bad_paths(tmp_path)
    code, out, err = run(command, paths[name], *([tmp_path / "out"] if command == "pack" else []))
    assert (code, out) == (1, "")
    assert err.startswith("fastio: ")
    assert name in err
    assert len(err.splitlines()) <= 2
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["inspect"],
        ["inspect", "a", "b"],
        ["inspect", "--nonsense", "a"],
        ["pack", "a"],
        ["pack", "a", "b", "--format", "hdf5"],
        ["pack", "a", "b", "--shuffle", "-1"],
        ["pack", "a", "b", "--shard-bytes", "0"],
    ],
)
def test_a_command_line_without_sense(run: Run, argv: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    first, second = err.splitlines()
    assert first.startswith("fastio: ")
    assert second.startswith("see 'fastio")


def test_overwriting_has_to_be_said(run: Run, squares: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n")
    code, _, err = run("pack", tmp_path / "t.csv", squares)
    assert code == 1
    assert "--overwrite" in err
    assert run("pack", tmp_path / "t.csv", squares, "--overwrite")[0] == 0


def test_help_and_version(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("inspect", "pack", "serve", "bench"):
        assert command in out
    code, out, _ = run("--version")
    assert (code, out.split()[0]) == (0, "fastio")


def test_a_command_that_cannot_be_loaded_harms_no_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "fastio_of_another_world:command", "fastio.commands")
    strange = EntryPoint("strange", "fastio:StreamSpec", "fastio.commands")
    monkeypatch.setattr(cli, "_entry_points", lambda: {"broken": broken, "strange": strange})
    code, out, _ = run("--help")
    assert code == 0
    assert "cannot be loaded" in out
    code, _, err = run("broken", "--flag", "x")
    assert code == 1
    assert err.startswith("fastio: the command 'broken' cannot be loaded: No module named")
    assert "is no command" in run("strange")[2]


def test_an_integer_that_a_command_returns_is_its_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.inspect_command, "callback", lambda **_: 7)
    assert run("inspect", "x")[0] == 7


def test_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.inspect_command, "callback", interrupt)
    code, out, err = run("inspect", "x")
    assert (code, out) == (130, "")
    assert err.strip() == "fastio: interrupted"


def test_inspect_loads_no_event_loop_and_no_server(squares: Path) -> None:
    script = (
        "import sys; from fastio.cli import main\n"
        "try: main(['inspect', sys.argv[1], '--json'])\n"
        "except SystemExit: pass\n"
        "sys.stderr.write(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(squares)], capture_output=True, text=True, timeout=60, check=True
    )
    assert not {"asyncio", "uvloop", "torch", "fastio_server", "fastio_client", "lmdb"} & set(done.stderr.split())


def test_a_reader_who_leaves_early_is_no_error(squares: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fastio.cli", "inspect", str(squares)],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


ENDLESS = """
import signal, sys
from pathlib import Path
from fastio import packing
from fastio.cli import main
from fastio.packing import pack as module

def tell(done, total, phase):
    sys.stdout.write("packing\\n")
    sys.stdout.flush()
    signal.pause()

real = packing.pack
packing.pack = lambda *args, **kwargs: real(*args, **{**kwargs, "progress": tell})
main(["pack", sys.argv[1], sys.argv[2]])
"""


def test_ctrl_c_while_packing_leaves_nothing(squares: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDLESS, str(squares), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "packing\n"
        assert (tmp_path / "out.partial").is_dir()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "fastio: interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["squares"]


def test_progress_is_lines_where_nobody_watches(capfd: pytest.CaptureFixture[str]) -> None:
    with Reporter("packing", unit="records") as reporter:
        reporter.update(1, 10)
        assert capfd.readouterr().err == ""
        reporter._due_s = 0.0
        reporter.update(1_000, 20_000, "writing")
        reporter.update(1_001, 20_000, "writing")
        reporter._due_s = 0.0
        reporter.update(1_002, None)
    err = capfd.readouterr().err
    assert err == "fastio: packing: writing: 1,000 of 20,000 records\nfastio: packing: 1,002 records\n"


@pytest.mark.parametrize("total", [100, None])
def test_progress_is_a_bar_on_a_terminal(
    total: int | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    reporter = Reporter("indexing", unit="bytes")
    reporter._interactive = True
    with reporter:
        reporter.update(10, total)
        reporter._due_s = 0.0
        reporter.update(20, total, "again")
        reporter._due_s = 0.0
        reporter.update(30, total)
    out, err = capfd.readouterr()
    assert out == ""
    assert "indexing" in err
