"""Which fields an Arrow schema becomes, and where each of them finds its nodes and buffers.

Structs are flattened to ``struct.member``; everything else is one field per column. The plan depends on the schema
alone, so that thousands of shards with one schema share it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fastio.errors import ErrorKind, StoreError
from fastio.formats.arrow.messages import parse_message, parse_prefix
from fastio.formats.arrow.types import Delivery, Footprint, children, delivery, footprint, own_buffers, plain_type
from fastio.spec import FieldSpec

__all__ = ["Leaf", "SchemaPlan", "plan_schema", "same_type"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One field of the delivered schema.

    Attributes:
        name: flattened.
        arrow_field: the Arrow field as it was declared.
        storage: its type with extension types replaced by what they are stored as.
        delivery: how it is delivered and reached.
        chain: where the structs around it, outermost first, and last the field itself, begin in a message.
    """

    name: str
    arrow_field: Any
    storage: Any
    delivery: Delivery
    chain: tuple[Footprint, ...]

    @property
    def place(self) -> Footprint:
        """Its first node, its first buffer and its first view field in a message."""
        return self.chain[-1]

    def spec(self, *, nullable: bool) -> FieldSpec:
        how = self.delivery
        return FieldSpec(
            name=self.name,
            kind=how.kind,
            dtype=how.dtype,
            shape=how.shape,
            text=how.text,
            nullable=nullable,
            arrow_type=str(self.arrow_field.type),
        )


@dataclass(frozen=True, slots=True)
class SchemaPlan:
    """What follows from a schema.

    Attributes:
        leaves: its fields, flattened.
        total: what a whole record batch has.
        arrow_schema: the delivered schema, serialised.
        dictionary_of_node: the id of the dictionary that a node's values are in, where they are in one.
    """

    leaves: tuple[Leaf, ...]
    total: Footprint
    arrow_schema: bytes
    dictionary_of_node: Mapping[int, int]


@lru_cache(maxsize=64)
def plan_schema(message: bytes, version: int) -> SchemaPlan:
    """Reads a schema message.

    Args:
        message: the encapsulated message.
        version: the metadata version.

    Raises:
        StoreError: the schema can't be read, has no fields, or flattens to two fields of one name. The message does not
            name the file, which the caller knows.
    """
    import pyarrow as pa

    try:
        schema = pa.ipc.read_schema(pa.py_buffer(message))
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"the Arrow schema can't be read: {error}", kind=ErrorKind.CORRUPT) from error
    leaves: list[Leaf] = []
    at = Footprint(0, 0, 0)
    for field in schema:
        leaves.extend(_leaves(field, field.name, at, (), version))
        at += footprint(plain_type(field.type), version)
    _check_names([leaf.name for leaf in leaves])
    delivered = pa.schema([leaf.arrow_field.with_name(leaf.name) for leaf in leaves], metadata=schema.metadata)
    prefix = parse_prefix(message)
    assert prefix is not None
    dictionaries = parse_message(message[prefix[0] :]).dictionary_ids()
    return SchemaPlan(tuple(leaves), at, delivered.serialize().to_pybytes(), dictionaries)


def _leaves(field: Any, name: str, at: Footprint, above: tuple[Footprint, ...], version: int) -> Iterator[Leaf]:
    import pyarrow as pa

    storage = plain_type(field.type)
    chain = (*above, at)
    if not pa.types.is_struct(storage) or not storage.num_fields:
        yield Leaf(name, field, storage, delivery(field, storage), chain)
        return
    below = at + Footprint(1, *own_buffers(storage, version))
    # Members are read from the declared type where it has them, so that extension types inside structs are seen.
    declared = field.type if pa.types.is_struct(field.type) else storage
    for number, child in enumerate(children(storage)):
        member = declared.field(number)
        yield from _leaves(member, f"{name}.{member.name}", below, chain, version)
        below += footprint(child, version)


def _check_names(names: list[str]) -> None:
    if not names:
        raise StoreError("the Arrow schema has no fields, so there is nothing to deliver", kind=ErrorKind.NOT_A_DATASET)
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise StoreError(
                f"two fields of the Arrow schema are called {name!r} (members of a struct count as `struct.member`); "
                "rename one of them",
                kind=ErrorKind.UNSUPPORTED_LAYOUT,
            )
        seen.add(name)


def same_type(a: str, b: str) -> bool:
    """Whether two Arrow types, in words, hold the same values: nullability and the names of list items don't matter.

    >>> same_type("list<item: int64 not null>", "list<element: int64>")
    True
    """
    return _canonical(a) == _canonical(b)


def _canonical(arrow_type: str) -> str:
    return re.sub(r"(list(?:_view)?)<(?:item|element|array|l): ", r"\1<", arrow_type.replace(" not null", ""))
