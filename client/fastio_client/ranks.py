"""Which rank of how many is this process?

Explicit arguments win, and then the environment is not looked at. Otherwise the innermost launcher that left a
complete pair of variables answers:

    torchrun    RANK, WORLD_SIZE
    Open MPI    OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE
    PMI         PMI_RANK, PMI_SIZE                  (MPICH, Intel MPI, srun --mpi=pmi2)
    Slurm       SLURM_PROCID, SLURM_NTASKS
    none        0 of 1

A wrong answer is silent and expensive: every rank reads the whole dataset, or a lone process an eighth of it. So the
other pairs present are held against the answer, and what cannot be reconciled is an error that names all of them.
Launchers nest, though: srun starts torchrun once per node, mpirun starts its daemons through Slurm. An outer pair may
differ from the answer if

- the answer carries torchrun's own mark (TORCHELASTIC_RUN_ID; `accelerate launch` sets it too): whatever started
  torchrun says where torchrun runs, not which of its workers this is;
- the answer is MPI's and the outer world is smaller: Slurm then counts mpirun's daemons;
- the answer is RANK and WORLD_SIZE without the mark, set by a script, and consistent with block-wise nesting: the outer
  world divides WORLD_SIZE into equal blocks and RANK lies in the block of the outer rank. Stale variables, the same in
  every task, fail this in all tasks but one, so that the job fails loudly.

Slurm's pair counts only inside a step, because in a batch script or under salloc it describes the allocation
(SLURM_PROCID=0 of SLURM_NTASKS=64) while a single process runs: with SLURM_JOB_ID but no SLURM_STEP_ID set, Slurm is
not a launcher. SLURM_STEP_NUM_TASKS, where set, is preferred to SLURM_NTASKS, which in a step may still be the job's.

Half of a pair is an error, unless a complete pair of another launcher agrees with it (``export WORLD_SIZE=...`` in a
batch script whose ranks come from Slurm is common): a rank without a world or a world without a rank is a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastio.errors import ErrorKind, RequestError

__all__ = ["rank_and_world"]

_TORCHRUN = ("RANK", "WORLD_SIZE")
_MPI = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))
_TORCHRUN_MARK = "TORCHELASTIC_RUN_ID"
_REMEDY = "pass rank= and world_size= to say which holds, or unset the stale variables"


@dataclass(frozen=True, slots=True)
class _Pair:
    """What one launcher left in the environment; None for a variable that is not set."""

    rank_name: str
    size_name: str
    rank: int | None
    size: int | None

    @property
    def complete(self) -> bool:
        return self.rank is not None and self.size is not None

    def __str__(self) -> str:
        values = ((self.rank_name, self.rank), (self.size_name, self.size))
        return ", ".join(f"{name}={value}" for name, value in values if value is not None)


def rank_and_world(rank: int | None, world_size: int | None, environ: Mapping[str, str]) -> tuple[int, int]:
    """The rank of this process and the world size, from arguments or from ``environ`` (usually ``os.environ``).

    Raises:
        RequestError: (kind ``BAD_RANK``) only one of the two arguments is given; a value is not a number or a rank not
            in [0, world size); half of a pair of variables is set; or two launchers contradict each other.

    >>> rank_and_world(None, None, {"RANK": "3", "WORLD_SIZE": "8"})
    (3, 8)
    >>> rank_and_world(0, 1, {"RANK": "3", "WORLD_SIZE": "8"})
    (0, 1)
    """
    if rank is not None or world_size is not None:
        return _place(_Pair("rank", "world_size", rank, world_size))
    pairs = _pairs(environ)
    complete = [pair for pair in pairs if pair.complete]
    if not complete:
        if pairs:
            raise _error(f"{_half(pairs[0])}; set both, or {_REMEDY}")
        return 0, 1
    inner = complete[0]
    place = _place(inner)
    marked = inner.rank_name == _TORCHRUN[0] and _TORCHRUN_MARK in environ
    for outer in pairs:
        if outer is not inner and not marked and not _reconciled(inner, outer):
            raise _error(f"the environment contradicts itself: {inner}, but {outer}; {_REMEDY}")
    return place


def _pairs(environ: Mapping[str, str]) -> list[_Pair]:
    """The pairs of which at least one variable is set, the innermost launcher first."""
    names = [_TORCHRUN, *_MPI]
    if "SLURM_JOB_ID" not in environ or "SLURM_STEP_ID" in environ or "SLURM_STEPID" in environ:
        size_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
        names.append(("SLURM_PROCID", size_name))
    # Behind torchrun's mark nothing else is looked at, so nothing else can be in the way.
    if _TORCHRUN_MARK in environ and all(name in environ for name in _TORCHRUN):
        names = [_TORCHRUN]
    pairs = [_Pair(rank, size, _number(environ, rank), _number(environ, size)) for rank, size in names]
    return [pair for pair in pairs if pair.rank is not None or pair.size is not None]


def _reconciled(inner: _Pair, outer: _Pair) -> bool:
    """Whether ``outer``, complete or half, can be true of a process of which ``inner`` is the answer."""
    if not outer.complete:
        return outer.rank in (None, inner.rank) and outer.size in (None, inner.size)
    rank, size = _place(inner)
    outer_rank, outer_size = _place(outer)
    if (inner.rank_name, inner.size_name) in _MPI:
        return outer_size < size or (outer_rank, outer_size) == (rank, size)
    return size % outer_size == 0 and rank // (size // outer_size) == outer_rank


def _place(pair: _Pair) -> tuple[int, int]:
    if pair.rank is None or pair.size is None:
        raise _error(f"{_half(pair)}; give both or neither")
    if pair.size < 1:
        raise _error(f"{pair.size_name} must be at least 1, got {pair}")
    if not 0 <= pair.rank < pair.size:
        raise _error(f"{pair.rank_name} must be in [0, {pair.size_name}={pair.size}), got {pair.rank}")
    return pair.rank, pair.size


def _half(pair: _Pair) -> str:
    missing = pair.rank_name if pair.rank is None else pair.size_name
    return f"{pair} is set but {missing} is not"


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise _error(f"{name} must be a whole number, got {text!r}; {_REMEDY}") from None


def _error(message: str) -> RequestError:
    return RequestError(message, kind=ErrorKind.BAD_RANK)
