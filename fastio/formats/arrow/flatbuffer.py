"""How to look a value up in a FlatBuffer: just enough of the encoding to read Arrow's metadata.

A table begins with a signed distance back to its vtable; the vtable holds, per slot, where in the table the value lies
(0: absent). Vectors and sub-tables are reached through unsigned forward distances. Whatever the bytes say, a look-up
either stays inside the buffer or raises :class:`Malformed`.

Source: the FlatBuffers documentation, "FlatBuffer internals".
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

__all__ = ["Malformed", "Table", "root_table"]

_U16 = struct.Struct("<H")
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")


class Malformed(ValueError):
    """The bytes are no FlatBuffer of the expected shape."""


class Table:
    """One table inside ``data``, at byte ``at``."""

    __slots__ = ("_at", "_data", "_slots_end", "_vtable")

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at
        self._vtable = at - _unpack(_I32, data, at)
        self._slots_end = self._vtable + _unpack(_U16, data, self._vtable)

    def number(self, slot: int, form: struct.Struct, default: int = 0) -> int:
        """The scalar in ``slot``."""
        at = self._place(slot)
        return _unpack(form, self._data, at) if at else default

    def table(self, slot: int) -> Table | None:
        """The table that ``slot`` points to."""
        at = self._place(slot)
        return Table(self._data, at + _unpack(_U32, self._data, at)) if at else None

    def vector(self, slot: int, dtype: npt.DTypeLike) -> npt.NDArray[np.void]:
        """The vector of scalars or structs in ``slot``; empty if absent."""
        kind = np.dtype(dtype)
        at = self._place(slot)
        if not at:
            return np.empty(0, dtype=kind)
        start = at + _unpack(_U32, self._data, at)
        count = _unpack(_U32, self._data, start)
        if start + 4 + count * kind.itemsize > len(self._data):
            raise Malformed(f"a vector of {count} items at byte {start} ends beyond {len(self._data)} bytes")
        return np.frombuffer(self._data, dtype=kind, count=count, offset=start + 4)

    def tables(self, slot: int) -> list[Table]:
        """The vector of tables in ``slot``."""
        at = self._place(slot)
        if not at:
            return []
        start = at + _unpack(_U32, self._data, at)
        places = range(start + 4, start + 4 + 4 * _unpack(_U32, self._data, start), 4)
        return [Table(self._data, place + _unpack(_U32, self._data, place)) for place in places]

    def _place(self, slot: int) -> int:
        entry = self._vtable + 4 + 2 * slot
        if entry + 2 > self._slots_end:
            return 0
        distance = _unpack(_U16, self._data, entry)
        return self._at + distance if distance else 0


def root_table(data: bytes) -> Table:
    """The table that the buffer is about."""
    return Table(data, _unpack(_U32, data, 0))


def _unpack(form: struct.Struct, data: bytes, at: int) -> int:
    if at < 0 or at + form.size > len(data):
        raise Malformed(f"a value at byte {at} lies outside of {len(data)} bytes")
    value: int = form.unpack_from(data, at)[0]
    return value
