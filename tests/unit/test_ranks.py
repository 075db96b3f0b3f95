"""fastio_client.ranks: which environments answer, and which are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastio.errors import ErrorKind, RequestError
from fastio_client.ranks import rank_and_world

PAIRS = {
    "torchrun": ("RANK", "WORLD_SIZE"),
    "openmpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "pmi": ("PMI_RANK", "PMI_SIZE"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS"),
}
STEP = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"}


def env(**places: tuple[int, int]) -> dict[str, str]:
    """The variables of each launcher, as ``env(slurm=(rank, world))``."""
    return {name: str(value) for key, place in places.items() for name, value in zip(PAIRS[key], place, strict=True)}


def torchrun(rank: int, world: int) -> dict[str, str]:
    return env(torchrun=(rank, world)) | {"TORCHELASTIC_RUN_ID": "none"}


def test_alone_without_any_environment() -> None:
    assert rank_and_world(None, None, {}) == (0, 1)
    assert rank_and_world(None, None, {"LOCAL_RANK": "3", "HOME": "/"}) == (0, 1)


@pytest.mark.parametrize("launcher", PAIRS)
def test_each_launcher_is_known(launcher: str) -> None:
    assert rank_and_world(None, None, env(**{launcher: (3, 8)})) == (3, 8)


@given(st.sets(st.sampled_from(sorted(PAIRS)), min_size=1), st.data())
def test_agreeing_launchers_are_one(launchers: set[str], data: st.DataObject) -> None:
    world = data.draw(st.integers(1, 64))
    rank = data.draw(st.integers(0, world - 1))
    assert rank_and_world(None, None, env(**dict.fromkeys(launchers, (rank, world)))) == (rank, world)


def test_explicit_arguments_win_over_any_environment() -> None:
    contradictory = env(torchrun=(1, 2), slurm=(5, 6), openmpi=(9, 3)) | {"PMI_RANK": "many"}
    assert rank_and_world(2, 4, contradictory) == (2, 4)


# --- nesting that happens every day


@pytest.mark.parametrize("node", [0, 1])
def test_srun_starts_torchrun_on_each_node(node: int) -> None:
    slurm = env(slurm=(node, 2)) | STEP
    assert rank_and_world(None, None, slurm | torchrun(8 * node + 3, 16)) == (8 * node + 3, 16)
    # a rendezvous may number the nodes in another order than Slurm
    assert rank_and_world(None, None, slurm | torchrun(8 * (1 - node) + 3, 16)) == (8 * (1 - node) + 3, 16)


def test_a_step_of_one_task_starts_torchrun() -> None:
    assert rank_and_world(None, None, env(slurm=(0, 1)) | STEP | torchrun(5, 8)) == (5, 8)
    assert rank_and_world(None, None, env(slurm=(0, 1)) | STEP | env(torchrun=(5, 8))) == (5, 8)


def test_every_task_of_a_sweep_starts_its_own_torchrun() -> None:
    assert rank_and_world(None, None, env(slurm=(3, 4)) | STEP | torchrun(1, 2)) == (1, 2)


def test_a_batch_script_is_one_process_whatever_was_allocated() -> None:
    batch = env(slurm=(0, 64)) | {"SLURM_JOB_ID": "77"}
    assert rank_and_world(None, None, batch) == (0, 1)
    assert rank_and_world(None, None, batch | torchrun(5, 8)) == (5, 8)
    assert rank_and_world(None, None, batch | env(torchrun=(5, 8))) == (5, 8)
    assert rank_and_world(None, None, batch | env(openmpi=(5, 8))) == (5, 8)


def test_an_allocation_without_a_task() -> None:
    assert rank_and_world(None, None, {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4"}) == (0, 1)
    assert rank_and_world(None, None, {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0"}) == (0, 1)


def test_an_interactive_step_counts_its_own_tasks() -> None:
    step = env(slurm=(0, 8)) | STEP | {"SLURM_STEP_NUM_TASKS": "1"}
    assert rank_and_world(None, None, step) == (0, 1)


def test_a_step_that_only_counts_its_tasks_itself() -> None:
    assert rank_and_world(None, None, STEP | {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}) == (3, 4)


@pytest.mark.parametrize("rank", range(8))
def test_mpirun_starts_its_daemons_through_slurm(rank: int) -> None:
    daemons = env(slurm=(1, 2)) | STEP
    assert rank_and_world(None, None, daemons | env(openmpi=(rank, 8))) == (rank, 8)
    assert rank_and_world(None, None, daemons | env(pmi=(rank, 8))) == (rank, 8)


@pytest.mark.parametrize("rank", range(16))
def test_a_script_numbers_its_own_processes_within_tasks(rank: int) -> None:
    outer = env(slurm=(rank // 8, 2)) | STEP
    assert rank_and_world(None, None, outer | env(torchrun=(rank, 16))) == (rank, 16)


def test_half_a_pair_that_agrees_is_no_trouble() -> None:
    exported = env(slurm=(3, 4)) | STEP | {"WORLD_SIZE": "4"}
    assert rank_and_world(None, None, exported) == (3, 4)


# --- what is refused


@pytest.mark.parametrize(
    "environ",
    [
        env(torchrun=(1, 4), slurm=(2, 4)),
        env(torchrun=(0, 1), slurm=(2, 4)),  # stale RANK=0 WORLD_SIZE=1 in every task
        env(torchrun=(0, 8), slurm=(1, 2)),  # stale RANK=0 WORLD_SIZE=8 in the second task
        env(torchrun=(3, 9), slurm=(0, 2)),
        env(torchrun=(1, 4), openmpi=(1, 8)),
        env(openmpi=(1, 4), slurm=(2, 4)),
        env(openmpi=(0, 2), slurm=(3, 8)),  # a driver under mpirun that calls srun
        env(openmpi=(1, 4), pmi=(0, 4)),
    ],
)
def test_contradictions_are_refused_and_named(environ: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="the environment contradicts itself") as caught:
        rank_and_world(None, None, environ)
    assert caught.value.kind == ErrorKind.BAD_RANK
    for name, value in environ.items():
        assert f"{name}={value}" in str(caught.value)
    assert "pass rank= and world_size=" in str(caught.value)


@pytest.mark.parametrize("launcher", PAIRS)
@pytest.mark.parametrize("half", [0, 1])
def test_half_a_pair_is_refused_and_named(launcher: str, half: int) -> None:
    present, missing = PAIRS[launcher][half], PAIRS[launcher][1 - half]
    with pytest.raises(RequestError, match=f"{present}=3 is set but {missing} is not") as caught:
        rank_and_world(None, None, {present: "3"})
    assert caught.value.kind == ErrorKind.BAD_RANK


def test_half_a_pair_that_disagrees_is_refused() -> None:
    with pytest.raises(RequestError, match="contradicts itself: SLURM_PROCID=3, SLURM_NTASKS=4, but WORLD_SIZE=8"):
        rank_and_world(None, None, env(slurm=(3, 4)) | {"WORLD_SIZE": "8"})


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 4)])
def test_half_the_arguments_are_refused(rank: int | None, world_size: int | None) -> None:
    with pytest.raises(RequestError, match=r"is set but .* is not; give both or neither"):
        rank_and_world(rank, world_size, {})


@pytest.mark.parametrize(
    ("rank", "world_size", "message"),
    [
        (4, 4, r"rank must be in \[0, world_size=4\), got 4"),
        (-1, 4, r"rank must be in \[0, world_size=4\), got -1"),
        (0, 0, "world_size must be at least 1, got rank=0, world_size=0"),
    ],
)
def test_impossible_arguments_are_refused(rank: int, world_size: int, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        rank_and_world(rank, world_size, {})
    assert caught.value.kind == ErrorKind.BAD_RANK


@pytest.mark.parametrize("launcher", PAIRS)
def test_impossible_variables_are_refused(launcher: str) -> None:
    rank_name, size_name = PAIRS[launcher]
    with pytest.raises(RequestError, match=rf"{rank_name} must be in \[0, {size_name}=4\), got 4"):
        rank_and_world(None, None, env(**{launcher: (4, 4)}))
    for text in ("", "two", "1.0"):
        with pytest.raises(RequestError, match=f"{rank_name} must be a whole number, got '{text}'"):
            rank_and_world(None, None, {rank_name: text, size_name: "4"})
