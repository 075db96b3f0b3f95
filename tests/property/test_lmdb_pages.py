"""The page parser against py-lmdb's own cursor, against pages of any size, and against damage of any kind.

Damaged files are only ever given to the parser, never to LMDB, which may end the process on them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastio.errors import StoreError
from tests.unit import lmdb_environments as environments

# Around the sizes where something changes: nothing, the largest inline value, one overflow page, two.
_SIZES = st.one_of(
    st.integers(0, 40),
    st.integers(1990, 2040),
    st.integers(4060, 4100),
    st.integers(8140, 8200),
    st.integers(0, 30_000),
)
_KEYS = st.one_of(st.binary(min_size=1, max_size=12), st.integers(0, 9999).map(lambda n: b"%d" % n))
_LONG_KEYS = st.binary(min_size=1, max_size=511)


@st.composite
def _operations(draw: st.DrawFn) -> list[environments.Operation]:
    keys = draw(st.lists(st.one_of(_KEYS, _LONG_KEYS), max_size=25))
    sizes = [draw(st.one_of(st.none(), _SIZES)) for _ in keys]
    return [(k, None if n is None else bytes([n % 251]) * n) for k, n in zip(keys, sizes, strict=True)]


@given(transactions=st.lists(_operations(), min_size=1, max_size=5), engine=st.sampled_from(environments.ENGINES))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_history_reads_as_the_cursor_reads_it(
    transactions: list[list[environments.Operation]], engine: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = environments.change(Path(folder) / "env", transactions, engine=engine)
        snapshot, entries = environments.newest(path)
        assert snapshot.version == ("1.0" if engine else "0.9")
        assert entries == list(environments.stored(path).items())


@given(
    count=st.integers(1, 4000),
    key_bytes=st.integers(0, 60),
    seed=st.integers(0, 1 << 30),
    engine=st.sampled_from(environments.ENGINES),
)
@settings(max_examples=15, deadline=None)
def test_many_small_entries_in_random_order(count: int, key_bytes: int, seed: int, engine: int) -> None:
    numbers = [(k * 2654435761 + seed) % (1 << 32) for k in range(count)]
    puts: list[environments.Operation] = [(b"%d" % n + b"k" * (n % (key_bytes + 1)), b"v" * (n % 90)) for n in numbers]
    deletes: list[environments.Operation] = [(key, None) for key, _ in puts[:: 3 + seed % 5]]
    with tempfile.TemporaryDirectory() as folder:
        path = environments.change(Path(folder) / "env", [puts, deletes, puts[: count // 7]], engine=engine)
        assert environments.newest(path)[1] == list(environments.stored(path).items())


@given(
    entries=st.dictionaries(st.binary(min_size=1, max_size=60), st.integers(0, 3000), min_size=1, max_size=60),
    page_bytes=st.sampled_from([512, 1024, 4096, 8192, 32768]),
    engine=st.sampled_from(environments.ENGINES),
)
@settings(max_examples=60, deadline=None)
def test_pages_of_any_size(entries: dict[bytes, int], page_bytes: int, engine: int) -> None:
    expected = {key: bytes([n % 256]) * n for key, n in sorted(entries.items())}
    with tempfile.TemporaryDirectory() as folder:
        path = environments.synthesise(Path(folder) / "data", expected, engine=engine, page_bytes=page_bytes)
        snapshot, found = environments.newest(path)
        assert snapshot.page_bytes == page_bytes
        assert found == list(expected.items())
        assert environments.stored(path) == expected


class Intact:
    """A sound data file of some 3 MB, and how much of it its snapshot uses."""

    def __init__(self, raw: bytes, used_bytes: int) -> None:
        self.raw, self.used_bytes = raw, used_bytes


@pytest.fixture(scope="module", params=environments.ENGINES)
def intact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Intact:
    path = tmp_path_factory.mktemp("intact") / "env"
    puts: list[environments.Operation] = [(b"key-%04d" % k, b"v" * (k * 37 % 5000)) for k in range(600)]
    environments.change(path, [puts[:300], puts[300:], puts[100:200]], engine=request.param)
    return Intact(environments.data_file(path).read_bytes(), (environments.newest(path)[0].last_page + 1) * 4096)


def parse_or_refuse(raw: bytes | bytearray) -> None:
    """Parses a file of these bytes: it must yield as many entries as it claims, each within the file, or be refused."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(raw)
        file.flush()
        try:
            snapshot, entries = environments.newest(Path(file.name))
        except StoreError as error:
            if file.name not in str(error):
                raise AssertionError(f"the error does not name the file: {error}") from error
        else:
            assert len(entries) == snapshot.entries


# The headers, the node pointers and (from the end) the nodes are where damage can do harm.
_PLACES = st.one_of(st.integers(0, 40), st.integers(0, 200), st.integers(4096 - 300, 4095))
_BYTES = st.one_of(st.integers(0, 255), st.sampled_from([0, 1, 2, 4, 127, 128, 255]))


@given(
    page=st.one_of(st.integers(0, 1), st.integers(0, 675)),
    changes=st.lists(st.tuples(_PLACES, _BYTES), min_size=1, max_size=4),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_an_error_or_harmless(intact: Intact, page: int, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(intact.raw)
    for at, value in changes:
        damaged[page * 4096 + at] = value
    parse_or_refuse(damaged)


@given(keep=st.floats(0, 1))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_truncated_file_is_refused_unless_only_unused_pages_are_gone(intact: Intact, keep: float) -> None:
    parse_or_refuse(intact.raw[: int(keep * intact.used_bytes)])
