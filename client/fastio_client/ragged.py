"""Records of different lengths in one array: values end to end, and where each record begins."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from typing import Any, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from fastio.errors import RequestError
from fastio.extents import Int64Array

__all__ = ["Ragged"]


class Ragged:
    """B records of varying length: record i is ``values[offsets_B1[i]:offsets_B1[i + 1]]``.

    Indexing and iterating give views of ``values``; a slice is a ``Ragged`` that shares them, so its offsets need not
    begin at 0.

    Args:
        values: all records, end to end.
        offsets_B1: B + 1 int64, counted in elements of ``values``, never decreasing.
        text: the bytes are UTF-8.
        listed: the records are lists of numbers even where ``values`` are bytes.

    >>> ragged = Ragged(np.frombuffer(b"onethree", dtype=np.uint8), np.array([0, 3, 8]), text=True)
    >>> len(ragged), ragged[1].tobytes(), ragged.to_list()
    (2, b'three', ['one', 'three'])
    >>> ragged.to_padded(length=4)[0].tolist()
    [[111, 110, 101, 0], [116, 104, 114, 101]]
    """

    __slots__ = ("listed", "offsets_B1", "text", "values")

    def __init__(
        self, values: npt.NDArray[Any], offsets_B1: Int64Array, *, text: bool = False, listed: bool = False
    ) -> None:
        self.values = values
        self.offsets_B1 = offsets_B1
        self.text = text
        self.listed = listed

    def __len__(self) -> int:
        return len(self.offsets_B1) - 1

    @overload
    def __getitem__(self, index: SupportsIndex) -> npt.NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Ragged: ...
    def __getitem__(self, index: SupportsIndex | slice) -> npt.NDArray[Any] | Ragged:
        count = len(self)
        if isinstance(index, slice):
            start, stop, step = index.indices(count)
            if step != 1:
                raise RequestError(f"a slice of a Ragged has step 1, got {step}")
            return Ragged(
                self.values, self.offsets_B1[start : max(start, stop) + 1], text=self.text, listed=self.listed
            )
        at = operator.index(index)
        if not -count <= at < count:
            raise IndexError(f"record {at} of {count}")
        at %= count
        return self.values[self.offsets_B1[at] : self.offsets_B1[at + 1]]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        values, ends = self.values, self.offsets_B1.tolist()
        return (values[start:stop] for start, stop in itertools.pairwise(ends))

    @property
    def lengths_B(self) -> Int64Array:
        """Elements of each record."""
        return np.diff(self.offsets_B1)

    def to_list(self) -> list[Any]:
        """Python objects: ``str`` for text, ``bytes`` for binary, lists of numbers otherwise.

        Raises:
            UnicodeDecodeError: a record of a text field is not UTF-8.
        """
        if self.text:
            return [record.tobytes().decode() for record in self]
        if self.values.dtype == np.uint8 and not self.listed:
            return [record.tobytes() for record in self]
        return [record.tolist() for record in self]

    def to_padded(self, fill: Any = 0, length: int | None = None) -> tuple[npt.NDArray[Any], Int64Array]:
        """A copy as one array of shape (B, L), and how many elements of each row are the record's.

        Args:
            fill: what stands behind each record's end.
            length: L; longer records are cut. None: that of the longest record.

        Raises:
            RequestError: ``length`` is negative.
        """
        lengths_B = self.lengths_B
        longest = int(lengths_B.max(initial=0))
        width = longest if length is None else length
        if width < 0:
            raise RequestError(f"length must be at least 0, got {width}")
        padded = np.full((len(self), width), fill, dtype=self.values.dtype)
        kept_B = np.minimum(lengths_B, width)
        # A loop over rows copies at memory speed, a mask over all elements does not; many short rows want the mask.
        if width >= 256:
            for row, start, kept in zip(padded, self.offsets_B1.tolist(), kept_B.tolist(), strict=False):
                row[:kept] = self.values[start : start + kept]
        else:
            values = self.values[self.offsets_B1[0] : self.offsets_B1[-1]]
            if longest > width:
                place = np.arange(len(values)) - np.repeat(self.offsets_B1[:-1] - self.offsets_B1[0], lengths_B)
                values = values[place < width]
            padded[np.arange(width) < kept_B[:, None]] = values
        return padded, kept_B

    def to_arrow(self) -> Any:
        """A ``pyarrow`` array that shares the values: large_string, large_binary, or large_list."""
        from fastio_client.arrow import ragged_array

        return ragged_array(self, None)

    def __repr__(self) -> str:
        elements = int(self.offsets_B1[-1] - self.offsets_B1[0])
        return f"<Ragged {len(self)} records, {elements} x {self.values.dtype}{', text' if self.text else ''}>"
