"""How values of an Arrow type are delivered, and how Arrow lays them out in nodes and buffers.

Two questions, both answered from the type alone: what does a record of this type look like in a batch
(:func:`delivery`), and which nodes and buffers does a column of it own in an IPC message (:func:`footprint`).

    Arrow                                   delivered as
    bool, integers, floats                  fixed, of that dtype
    timestamp, duration, date64             fixed, NumPy datetime64 / timedelta64 of the same unit
    date32, time32 / time64                 fixed, int32 / int64 (days, or the unit the type names)
    decimal, fixed-size binary              fixed, n bytes
    fixed-size list of the above            fixed, one more dimension
    Hugging Face ArrayND, fixed_shape_tensor  fixed, of its shape
    binary, string, their large and view    ragged bytes
    list of fixed-width scalars             ragged, of the item's dtype
    dictionary, run-end encoded             as the values they stand for
    anything deeper                         ragged UTF-8 JSON: bytes as base64, maps as [key, value] pairs, temporal
                                            values as integers in the unit the type names, decimals as strings
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Literal

__all__ = ["Delivery", "Footprint", "Route", "children", "delivery", "footprint", "plain_type", "scalar_layout"]

# How a field's bytes are reached: "fixed", "bits", "offsets" (one or more levels of list or binary offsets) and
# "views" by extents; "decoded" by pyarrow, batch by batch.
Route = Literal["fixed", "bits", "offsets", "views", "decoded"]

_HF_ARRAY = re.compile(r"datasets\.features\.features\.Array\dDExtensionType")
_JSON_REASON = "is nested deeper than a list of scalars and delivered as JSON"


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a field is delivered and reached.

    Attributes:
        kind, dtype, shape, text: as in :class:`~fastio.spec.FieldSpec`.
        route: how its bytes are reached.
        levels: for "offsets", the nested lists between a record and its values.
        reason: why it is not served by extents, if it is not.
        json: values are turned into JSON text.
    """

    kind: Literal["fixed", "ragged"]
    dtype: str
    shape: tuple[int, ...] = ()
    text: bool = False
    route: Route = "decoded"
    levels: int = 0
    reason: str = ""
    json: bool = False

    @property
    def width_must_hold(self) -> bool:
        """Variable lists whose records all have to have the field's shape."""
        return self.route == "offsets" and self.kind == "fixed"


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a column owns in a message: ``nodes``, ``buffers`` (data buffers of views not counted) and how many
    view-typed fields, its own and its children's.
    """

    nodes: int
    buffers: int
    views: int

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(self.nodes + other.nodes, self.buffers + other.buffers, self.views + other.views)


def delivery(field: Any, storage: Any) -> Delivery:
    """How an Arrow field, its type stored as ``storage`` (extension types stripped), is delivered."""
    tensor = _tensor_delivery(field, storage)
    return tensor if tensor is not None else _plain_delivery(storage)


@lru_cache(maxsize=4096)
def _plain_delivery(storage: Any) -> Delivery:
    import pyarrow as pa

    types = pa.types
    scalar = scalar_layout(storage)
    if types.is_boolean(storage):
        return Delivery("fixed", "|b1", route="bits")
    if scalar is not None:
        return Delivery("fixed", *scalar, route="fixed")
    if types.is_null(storage):
        return Delivery("ragged", "|u1", reason="has no values at all (Arrow's null type)")
    if types.is_binary_view(storage) or types.is_string_view(storage):
        return Delivery("ragged", "|u1", text=types.is_string_view(storage), route="views")
    if _is_binary(storage) or _is_string(storage):
        return Delivery("ragged", "|u1", text=_is_string(storage), route="offsets", levels=1)
    if types.is_dictionary(storage) or types.is_run_end_encoded(storage):
        values = _plain_delivery(storage.value_type)
        how = "dictionary" if types.is_dictionary(storage) else "run-end"
        reason = f"is {how} encoded and decoded on delivery"
        return Delivery(values.kind, values.dtype, values.shape, values.text, reason=reason, json=values.json)
    return _list_delivery(storage) or Delivery("ragged", "|u1", text=True, reason=_JSON_REASON, json=True)


def _list_delivery(storage: Any) -> Delivery | None:
    import pyarrow as pa

    types = pa.types
    if types.is_fixed_size_list(storage) and types.is_boolean(storage.value_type) and storage.list_size:
        return Delivery("fixed", "|b1", (storage.list_size,), reason="is a list of bits, which are unpacked")
    plain_list = types.is_list(storage) or types.is_large_list(storage)
    if not plain_list and not types.is_list_view(storage) and not types.is_large_list_view(storage):
        return None
    if types.is_boolean(storage.value_type):
        return Delivery("ragged", "|b1", reason="is a list of bits, which are unpacked")
    item = scalar_layout(storage.value_type)
    if item is None or item[1]:
        return None
    if plain_list:
        return Delivery("ragged", item[0], route="offsets", levels=1)
    return Delivery("ragged", item[0], reason="is a list view")


def _tensor_delivery(field: Any, storage: Any) -> Delivery | None:
    name, metadata = _extension(field)
    if name == "arrow.fixed_shape_tensor":
        described = json.loads(metadata or "{}")
        shape, flat = described.get("shape"), scalar_layout(storage)
        order = described.get("permutation") or []
        if flat is None or not shape or flat[1] != (prod(shape),) or order != sorted(order):
            return None
        return Delivery("fixed", flat[0], tuple(shape), route="fixed")
    if not _HF_ARRAY.fullmatch(name):
        return None
    shape = json.loads(metadata)[0]
    item, levels = _innermost(storage)
    scalar = scalar_layout(item)
    if None in shape or levels != len(shape) or 0 in shape or scalar is None or scalar[1]:
        return None
    return Delivery("fixed", scalar[0], tuple(shape), route="offsets", levels=levels)


def _innermost(storage: Any) -> tuple[Any, int]:
    import pyarrow as pa

    levels = 0
    while pa.types.is_list(storage):
        storage, levels = storage.value_type, levels + 1
    return storage, levels


def _extension(field: Any) -> tuple[str, bytes]:
    """Name and metadata of a field's extension type, whether or not pyarrow knows it in this process."""
    type_, name = field.type, getattr(field.type, "extension_name", "")
    if name == "arrow.fixed_shape_tensor":
        return name, json.dumps({"shape": type_.shape, "permutation": type_.permutation}).encode()
    if name:
        # pyarrow's own types have no such method; those of Python libraries do.
        return name, getattr(type_, "__arrow_ext_serialize__", bytes)()
    metadata = field.metadata or {}
    return metadata.get(b"ARROW:extension:name", b"").decode(), metadata.get(b"ARROW:extension:metadata", b"")


def scalar_layout(storage: Any) -> tuple[str, tuple[int, ...]] | None:
    """The dtype and shape of a fixed-width value; None for booleans and everything that is not of fixed width."""
    import pyarrow as pa

    types = pa.types
    if types.is_fixed_size_list(storage):
        item = scalar_layout(storage.value_type)
        return (item[0], (storage.list_size, *item[1])) if item is not None and storage.list_size > 0 else None
    if types.is_decimal(storage):
        return "|u1", (storage.bit_width // 8,)
    if types.is_fixed_size_binary(storage):
        return ("|u1", (storage.byte_width,)) if storage.byte_width else None
    if types.is_timestamp(storage) or types.is_duration(storage):
        return f"<{'M' if types.is_timestamp(storage) else 'm'}8[{storage.unit}]", ()
    if types.is_date64(storage):
        return "<M8[ms]", ()
    if types.is_date32(storage) or types.is_time32(storage):
        return "<i4", ()
    if types.is_time64(storage):
        return "<i8", ()
    if types.is_integer(storage) or types.is_floating(storage):
        letter = "f" if types.is_floating(storage) else "u" if types.is_unsigned_integer(storage) else "i"
        return f"{'|' if storage.bit_width == 8 else '<'}{letter}{storage.bit_width // 8}", ()
    return None


def children(storage: Any) -> list[Any]:
    """The types of the child columns, in the order of their nodes."""
    import pyarrow as pa

    if pa.types.is_dictionary(storage):
        return []
    if pa.types.is_run_end_encoded(storage):
        return [storage.run_end_type, storage.value_type]
    return [storage.field(number).type for number in range(storage.num_fields)]


@lru_cache(maxsize=4096)
def footprint(storage: Any, version: int) -> Footprint:
    """Nodes and buffers of a column of this type, its children's included. ``version`` is the metadata version."""
    own = Footprint(1, *own_buffers(storage, version))
    return sum((footprint(child, version) for child in children(storage)), own)


def own_buffers(storage: Any, version: int) -> tuple[int, int]:
    """The (fixed buffers, views) a column has itself, without its children's."""
    import pyarrow as pa

    types = pa.types
    if types.is_null(storage) or types.is_run_end_encoded(storage):
        return 0, 0
    if types.is_union(storage):
        # Until metadata V5 unions had a validity bitmap of their own.
        return (2 if storage.mode == "dense" else 1) + (version < 4), 0
    if types.is_struct(storage) or types.is_fixed_size_list(storage):
        return 1, 0
    if types.is_binary_view(storage) or types.is_string_view(storage):
        return 2, 1
    list_views = types.is_list_view(storage) or types.is_large_list_view(storage)
    return (3 if list_views or _is_binary(storage) or _is_string(storage) else 2), 0


def plain_type(type_: Any) -> Any:
    """The type as it is stored: extension types replaced by their storage, at every depth."""
    import pyarrow as pa

    types = pa.types
    while isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    if types.is_dictionary(type_):
        return pa.dictionary(type_.index_type, plain_type(type_.value_type), type_.ordered)
    if types.is_run_end_encoded(type_):
        return pa.run_end_encoded(type_.run_end_type, plain_type(type_.value_type))
    if not type_.num_fields:
        return type_
    fields = [type_.field(number) for number in range(type_.num_fields)]
    fields = [field.with_type(plain_type(field.type)) for field in fields]
    if types.is_struct(type_):
        return pa.struct(fields)
    if types.is_map(type_):
        entry = fields[0].type
        return pa.map_(entry.field(0), entry.field(1), keys_sorted=type_.keys_sorted)
    if types.is_union(type_):
        return pa.union(fields, mode=type_.mode, type_codes=type_.type_codes)
    if types.is_fixed_size_list(type_):
        return pa.list_(fields[0], type_.list_size)
    return _list_maker(type_)(fields[0])


def _list_maker(type_: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_large_list(type_):
        return pa.large_list
    if pa.types.is_list_view(type_):
        return pa.list_view
    return pa.large_list_view if pa.types.is_large_list_view(type_) else pa.list_


def _is_binary(storage: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(storage) or pa.types.is_large_binary(storage))


def _is_string(storage: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(storage) or pa.types.is_large_string(storage))
