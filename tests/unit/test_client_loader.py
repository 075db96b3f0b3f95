"""The loader against a server in a thread that does what it is told, also wrongly."""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fastio.errors import (
    ClosedError,
    ErrorKind,
    FastioError,
    RemoteProtocolError,
    RequestError,
    StoreError,
    UnavailableError,
)
from fastio.order import Digest, verify_digest
from fastio.testing.fake_server import FakeDataset, FakeServer, Fault
from fastio.wire import FrameType, Header, encode_header
from fastio.wire.messages import CloseStream, Credit, ErrorMessage, Hello, OpenStream
from fastio_client import Batch, Loader, Ragged

DATA = FakeDataset(records=100)
# It describes the dataset, sends a few batches, and is of no use from then on.
BROKEN_FOR_EVER = [Fault(), Fault(cut_after_bytes=2000), *[Fault(cut_after_bytes=0)] * 100]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer({"d": DATA}) as made:
        yield made


def ids_of(batches: Any) -> list[list[int]]:
    return [batch.ids.tolist() for batch in batches]


def flat(lists: list[list[Any]]) -> list[Any]:
    return [item for items in lists for item in items]


def check(batch: Batch, dataset: FakeDataset = DATA) -> None:
    """Every value is what its record's id says."""
    number, word = batch["number"], batch["word"]
    assert isinstance(word, Ragged)
    assert isinstance(number, np.ndarray)
    assert batch.masks["number"].tolist() == [record % 7 != 0 for record in batch.ids]
    assert number.tolist() == [record if record % 7 else 0 for record in batch.ids]
    assert word.to_list() == [dataset.word(record).decode() for record in batch.ids]


def test_an_epoch_is_every_record_once_and_the_next_is_another(server: FakeServer) -> None:
    with Loader(server.url("d"), batch_size=16) as loader:
        assert server.connections == 0
        assert len(loader) == 7
        epochs: list[list[list[int]]] = []
        for _ in range(2):
            batches = list(loader)
            for step, batch in enumerate(batches):
                check(batch)
                assert (batch.step, batch.epoch) == (step, len(epochs))
            epochs.append(ids_of(batches))
            assert loader.verify_epoch()
        for epoch in epochs:
            assert sorted(flat(epoch)) == list(range(100))
        assert epochs[0] != epochs[1]


def test_ranks_take_equally_many_steps_and_each_record_once(server: FakeServer) -> None:
    loaders = [Loader(server.url("d"), batch_size=9, rank=rank, world_size=3, seed=5) for rank in range(3)]
    taken = [ids_of(loader) for loader in loaders]
    assert {len(loader) for loader in loaders} == {len(steps) for steps in taken} == {4}
    assert sorted(flat(flat(taken))) == list(range(100))
    total = Digest()
    for loader in loaders:
        assert loader.verify_epoch()
        total = total.merge(loader.digest)
        loader.close()
    assert verify_digest(total, 100)


def test_fields_are_chosen_and_ordered(server: FakeServer) -> None:
    with Loader(server.url("d"), batch_size=50, fields=["word"], order="sequential") as loader:
        batch = next(iter(loader))
        assert list(batch) == ["word"]
        assert batch.ids.tolist() == list(range(50))
    with (
        Loader(server.url("d"), batch_size=50, fields=["nope"]) as loader,
        pytest.raises(RequestError, match=r"127.0.0.1:.*no field 'nope'; there are: number, word"),
    ):
        next(iter(loader))


# --- iterations


def test_what_the_next_iteration_is(server: FakeServer) -> None:
    with Loader(server.url("d"), batch_size=30) as loader:
        first = ids_of(loader)
        for _ in range(2):  # abandoned: the same epoch from its start
            iterator = iter(loader)
            second = [next(iterator).ids.tolist()]
            assert (loader.epoch, len(loader)) == (1, 4)
        assert ids_of(loader)[:1] == second
        loader.set_epoch(0)
        assert ids_of(loader) == first
        loader.set_epoch(1)
        assert ids_of(loader)[:1] == second
        assert loader.epoch == 2
        with pytest.raises(RequestError, match="epoch must be at least 0, got -1"):
            loader.set_epoch(-1)


def test_an_iterator_ends_when_a_newer_one_begins(server: FakeServer) -> None:
    with Loader(server.url("d"), batch_size=30) as loader:
        old = iter(loader)
        next(old)
        new = iter(loader)
        with pytest.raises(ClosedError, match="ended by close, set_epoch, or a newer one"):
            next(old)
        assert len(list(new)) == 4
        assert list(new) == []


def test_dropping_an_iterator_ends_its_connection(server: FakeServer) -> None:
    with Loader(server.url("d"), batch_size=1) as loader:
        for _ in loader:
            break
        gc.collect()
        wait_until(lambda: not server._sockets, "the connection is gone")


def test_a_closed_loader_says_so(server: FakeServer) -> None:
    loader = Loader(server.url("d"), batch_size=30)
    iterator = iter(loader)
    batch = next(iterator)
    loader.close()
    loader.close()
    check(batch)
    for use in (lambda: next(iterator), lambda: iter(loader), lambda: len(loader), loader.state_dict):
        with pytest.raises(ClosedError):
            use()
    assert repr(loader).endswith("rank 0 of 1, closed>")


# --- state


@pytest.mark.parametrize("stop", range(8))
def test_a_state_resumes_at_the_exact_record_under_any_geometry(server: FakeServer, stop: int) -> None:
    with Loader(server.url("d"), batch_size=15) as loader:
        iterator = iter(loader)
        taken = [record for _ in range(min(stop, 7)) for record in next(iterator).ids]
        if stop == 7:
            assert list(iterator) == []
        state = json.loads(json.dumps(loader.state_dict()))
        assert state["records_done"] == len(taken)
        following = ids_of(loader) if stop == 7 else None
    with Loader(server.url("d"), batch_size=15) as same:
        same.load_state_dict(state)
        assert same.state_dict() == state
        if following is not None:
            assert ids_of(same) == following  # the next epoch, as in the unbroken run
            return
        assert len(same) == 7 - stop
        batches = list(same)
        assert [batch.step for batch in batches] == list(range(stop, 7))
        assert same.verify_epoch().expected.count == 100
        assert same.verify_epoch()
    rest = flat(ids_of(batches))
    others = [Loader(server.url("d"), batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    found = []
    for other in others:
        other.load_state_dict(state)
        found += flat(ids_of(other))
        assert other.verify_epoch()
        other.close()
    assert sorted(found) == sorted(rest)
    assert verify_digest(others[0].digest.merge(others[1].digest), 100)


def test_the_usual_loop_over_epochs_can_be_resumed_inside_one(server: FakeServer) -> None:
    def train(loader: Loader, epochs: range, stop: int) -> list[list[int]]:
        seen = []
        for epoch in epochs:
            loader.set_epoch(epoch)
            for batch in loader:
                seen.append(batch.ids.tolist())
                if len(seen) == stop:
                    return seen
        return seen

    with Loader(server.url("d"), batch_size=40) as whole:
        expected = train(whole, range(3), -1)
    for stop in (1, 3, 4, 9):
        with Loader(server.url("d"), batch_size=40) as first:
            seen = train(first, range(3), stop)
            state = first.state_dict()
        with Loader(server.url("d"), batch_size=40) as second:
            second.load_state_dict(state)
            assert seen + train(second, range(state["epoch"], 3), -1) == expected


def test_a_resumed_iteration_that_is_abandoned_begins_where_it_was_resumed(server: FakeServer) -> None:
    with Loader(server.url("d"), batch_size=40) as loader:
        loader.load_state_dict(loader.state_dict() | {"records_done": 40, "step": 1})
        first = ids_of([next(iter(loader))])
        assert ids_of(loader)[:1] == first


def test_states_that_do_not_fit(server: FakeServer) -> None:
    with Loader(server.url("d"), batch_size=40) as loader:
        state = loader.state_dict()
    with Loader(server.url("d"), batch_size=40, seed=1) as other:
        with pytest.raises(RequestError, match="seed=0, the loader has seed=1"):
            other.load_state_dict(state)
        with pytest.raises(RequestError, match="another dataset"):
            other.load_state_dict(state | {"fingerprint": "x"})


def test_steps_taken_elsewhere(server: FakeServer) -> None:
    with Loader(server.url("d"), batch_size=30) as loader:
        states = [loader.state_dict()]
        for _ in range(2):
            states.extend(loader.state_dict() for _batch in loader)
        loader.set_epoch(0)
        for steps in (0, 1, 3, 4, 5, 8):
            found, expected = loader.state_after(steps), states[steps]
            assert {**found, "delivered": None} == {**expected, "delivered": None}


# --- memory


def test_batches_that_are_kept_are_never_overwritten_and_dropped_ones_are_recycled(server: FakeServer) -> None:
    with Loader(server.url("d"), batch_size=2, window_bytes=4096) as loader:
        kept = [batch for _ in range(2) for batch in loader]
        assert len(kept) == 100
        for batch in kept:
            check(batch)
        held = loader.statistics().memory.leased_bytes
        assert held >= 100 * 4096
        del kept, batch
        gc.collect()
        assert loader.statistics().memory.leased_bytes < held // 10
        list(loader)
        assert loader.statistics().memory.free_bytes <= held


def test_statistics(server: FakeServer) -> None:
    with Loader(server.url("d"), batch_size=10) as loader:
        empty = loader.statistics()
        assert (empty.batches, empty.waiting_share, empty.queue_share) == (0, 0.0, 0.0)
        iterator = iter(loader)
        next(iterator)
        wait_until(lambda: loader.statistics().queued_batches >= 8, "the queue is full")
        now = loader.statistics()
        assert (now.batches, now.records) == (1, 10)
        assert now.payload_bytes > 80
        assert 0.25 <= now.queue_share <= 1
        assert 0 < now.waited_s <= now.elapsed_s


def test_credits_bound_what_is_received_ahead() -> None:
    data = FakeDataset(records=400, word_bytes=1000)
    with (
        FakeServer({"d": data}) as server,
        Loader(server.url("d"), batch_size=10, window_bytes=40_000) as loader,
    ):
        iterator = iter(loader)
        next(iterator)
        wait_until(lambda: loader.statistics().queued_batches == 3, "all credits are used")
        for _ in range(20):
            next(iterator)
            assert loader.statistics().queued_batches <= 3
        granted = sum(message.batches for _, message in server.requests if isinstance(message, Credit))
        assert granted <= 24


# --- broken connections


@pytest.mark.parametrize("cut", [0, 10, 60, 300, 1111, 2000, 4000])
def test_a_broken_connection_goes_unnoticed(cut: int) -> None:
    faults = [Fault(), Fault(cut_after_bytes=cut), Fault(cut_after_bytes=cut // 2), Fault(cut_after_bytes=400)]
    with FakeServer({"d": DATA}, faults=faults) as server, Loader(server.url("d"), batch_size=10) as loader:
        assert len(loader) == 10
        batches = list(loader)
        assert [batch.step for batch in batches] == list(range(10))
        for batch in batches:
            check(batch)
        assert loader.verify_epoch()
        assert loader.statistics().reconnects >= 1
        opened = [message.spec.first_step for _, message in server.requests if isinstance(message, OpenStream)]
        assert opened == sorted(opened)


def test_giving_up_names_address_dataset_and_place() -> None:
    server = FakeServer({"d": DATA}, faults=BROKEN_FOR_EVER)
    with Loader(server.url("d"), batch_size=10, reconnect_timeout_s=1) as loader:
        iterator = iter(loader)
        next(iterator)
        server.close()
        pattern = rf"gave up on {server.address}/d after 1 s .* at step \d+ of epoch 0 of .*no daemon answers"
        for _ in range(2):
            with pytest.raises(UnavailableError, match=pattern):
                list(iterator)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        Loader(f"fastio://127.0.0.1:{port}/d", batch_size=1) as loader,
        pytest.raises(UnavailableError, match=rf"no daemon answers at 127.0.0.1:{port} \(Connection refused\)"),
    ):
        len(loader)


def test_a_silent_server_counts_as_lost() -> None:
    faults = [Fault(), Fault(silent_after_bytes=1500)]
    with FakeServer({"d": DATA}, faults=faults, keepalive_s=0.1) as server:
        with Loader(server.url("d"), batch_size=10) as loader:
            assert [batch.step for batch in loader] == list(range(10))
            assert loader.statistics().reconnects == 1
        assert server.connections == 3


def test_a_slow_consumer_is_not_dropped() -> None:
    with (
        FakeServer({"d": DATA}, keepalive_s=0.1) as server,
        Loader(server.url("d"), batch_size=10, window_bytes=1000) as loader,
    ):
        iterator = iter(loader)
        next(iterator)
        wait_until(lambda: sum(type(m).__name__ == "Ping" for _, m in server.requests) >= 4, "keep-alives")
        assert len(list(iterator)) == 9
        assert loader.statistics().reconnects == 0


def error(kind: str, *, fatal: bool = False) -> ErrorMessage:
    return ErrorMessage(kind, "so it is", retry=kind == "overloaded", fatal=fatal)


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        (Fault(fail_open=error("too_few_records")), RequestError),
        (Fault(fail_open=error("corrupt", fatal=True)), StoreError),
        (Fault(fail_at_step=(3, error("io"))), StoreError),
        (Fault(fail_at_step=(0, error("a_kind_of_the_future"))), StoreError),
        (Fault(refuse=error("bad_credentials", fatal=True)), RequestError),
    ],
)
def test_errors_of_the_server_reach_the_consumer_at_once(fault: Fault, wanted: type[FastioError]) -> None:
    with FakeServer({"d": DATA}, faults=[Fault(), fault]) as server, Loader(server.url("d"), batch_size=10) as loader:
        with pytest.raises(wanted, match=f"{server.address}: so it is"):
            list(loader)
        assert server.connections == 2
        assert loader.statistics().batches == (3 if fault.fail_at_step and fault.fail_at_step[0] else 0)


def test_a_server_that_asks_to_come_back_is_asked_again() -> None:
    faults = [Fault(), Fault(fail_open=error("overloaded")), Fault(refuse=error("draining", fatal=True))]
    with FakeServer({"d": DATA}, faults=faults) as server, Loader(server.url("d"), batch_size=10) as loader:
        assert len(list(loader)) == 10
        assert server.connections == 4


def test_lies_are_not_believed() -> None:
    other_major = encode_header(Header(type=FrameType.WELCOME, sequence=0, payload_bytes=1, major=2))
    for fault, complaint in (
        (Fault(first_bytes=other_major), r"speaks version 2.0 of the protocol, this side 1.0"),
        (Fault(first_bytes=b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(99)), "does not speak fastio"),
        (Fault(shift_ids=1000), r"record ids .* of 100 records"),
    ):
        with FakeServer({"d": DATA}, faults=[Fault(), fault]) as server:
            with Loader(server.url("d"), batch_size=10) as loader, pytest.raises(RemoteProtocolError, match=complaint):
                list(loader)
            assert server.connections == 2


def test_a_dataset_that_was_replaced_is_noticed() -> None:
    faults = [Fault(), Fault(cut_after_bytes=1500)]
    with FakeServer({"d": DATA}, faults=faults) as server, Loader(server.url("d"), batch_size=10) as loader:
        len(loader)
        server.datasets["d"] = FakeDataset(records=100, fingerprint="new")
        with pytest.raises(RequestError, match="the dataset is new, wanted fake"):
            list(loader)


def test_unknown_names_and_tokens() -> None:
    with FakeServer({"d": DATA, "e": DATA}, token="secret") as server:
        with Loader(server.url("x"), batch_size=1, token="secret") as loader:
            with pytest.raises(RequestError, match="no dataset 'x'; there are: d, e") as caught:
                len(loader)
            assert caught.value.kind is ErrorKind.UNKNOWN_DATASET
        with Loader(server.url("d"), batch_size=1) as loader, pytest.raises(RequestError, match="a token is wanted"):
            len(loader)
        with Loader(server.url("d"), batch_size=50, token="secret") as loader:
            assert len(list(loader)) == 2
            assert "secret" not in repr(loader)


# --- ending


def test_close_wakes_a_receiver_that_waits() -> None:
    with FakeServer({"d": DATA}, faults=[Fault(), Fault(silent_after_bytes=900)]) as server:
        loader = Loader(server.url("d"), batch_size=10)
        next(iter(loader))
        iterator = iter(loader)
        began_s = time.monotonic()
        loader.close()
        assert time.monotonic() - began_s < 1.5
        with pytest.raises(ClosedError):
            next(iterator)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastio ")]


def test_close_during_back_off_is_immediate() -> None:
    server = FakeServer({"d": DATA}, faults=BROKEN_FOR_EVER)
    loader = Loader(server.url("d"), batch_size=10)
    iterator = iter(loader)
    next(iterator)
    server.close()
    wait_until(lambda: loader.statistics().reconnects >= 4, "a few attempts")
    began_s = time.monotonic()
    loader.close()
    assert time.monotonic() - began_s < 1.5


def test_ctrl_c_ends_the_wait_for_a_batch() -> None:
    faults = [Fault(), Fault(silent_after_bytes=0)]
    with FakeServer({"d": DATA}, faults=faults) as server, Loader(server.url("d"), batch_size=10) as loader:
        iterator = iter(loader)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            next(iterator)


# --- processes


def test_a_pickled_loader_is_its_arguments(server: FakeServer) -> None:
    with Loader(server.url("d"), batch_size=10, fields=["word"], seed=3, rank=1, world_size=2, token="t") as loader:
        next(iter(loader))
        copy = pickle.loads(pickle.dumps(loader))
        assert ids_of(copy) == ids_of(loader)
        assert (copy.rank, copy.seed, copy.token) == (1, 3, "t")
        copy.close()
        assert len(pickle.dumps(loader)) < 1000


def test_a_forked_child_has_connections_of_its_own(server: FakeServer) -> None:
    with Loader(server.url("d"), batch_size=10) as loader:
        iterator = iter(loader)
        seen = [next(iterator).ids.tolist()]
        code = in_child(lambda: _use_in_child(loader, iterator))
        seen += ids_of(iterator)
        assert code == 0
        assert sorted(flat(seen)) == list(range(100))
        assert loader.statistics().reconnects == 0


def _use_in_child(loader: Loader, iterator: Iterator[Batch]) -> None:
    with pytest.raises(ClosedError, match="fork"):
        next(iterator)
    assert len(list(loader)) == 10
    loader.close()


def in_child(work: Callable[[], None]) -> int:
    """The exit status of a forked child that did ``work``."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: there are threads
        child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {timeout_s} s"
        time.sleep(0.005)


def test_hello_names_the_client(server: FakeServer) -> None:
    with Loader(server.url("d"), batch_size=10, token="t") as loader:
        len(loader)
    assert (0, Hello(f"fastio-client pid {os.getpid()}", "t")) in server.requests
    assert not any(isinstance(message, CloseStream) for _, message in server.requests)
