"""Typed memory for compiled code: rows of records or numbers at an address, as numba extension types.

``rows(address, dtype)[i]`` is a number, or a record whose fields are read and written as attributes. A field that is a
record is one too, a field that is several is rows again, and so are the arrays of the state, whose addresses the root
holds: ``s.gpus[i].groups[kind].in_flight``. This differs from numba's arrays in three ways that make it faster: an
index is never negative, so none is wrapped around; integers of any width come out as int64, so nothing that takes them
is compiled twice; and fields known to stay as they are need not be read again after every store.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_getattr, infer_global, signature
from numba.extending import (
    intrinsic,
    lower_builtin,
    lower_getattr_generic,
    lower_setattr_generic,
    models,
    register_model,
)
from numba.np import numpy_support

from dysharp_env.simulator.state.records import ARRAYS, CONSTANT_FIELDS, ROOT


class Row(types.Type):
    """One record in memory."""

    def __init__(self, record: types.Record) -> None:
        """Names the type shortly: numba writes argument types into the name of every function."""
        self.record = record
        self.constant = next((names for dtype, names in CONSTANT_FIELDS if _numba_type(dtype) == record), frozenset())
        self.is_root = record == _numba_type(ROOT)
        super().__init__(f"Row({record.size}, {'.'.join(record.fields)[:40]})")

    @property
    def key(self) -> Any:
        """What two equal types have in common."""
        return self.record


class Rows(types.Type):
    """Records or numbers that follow each other in memory."""

    def __init__(self, item: types.Type) -> None:
        """Takes the type of one of them, as it lies in memory."""
        self.item = item
        shown = Row(item) if isinstance(item, types.Record) else _wide(item)
        self.shown = shown
        super().__init__(f"Rows({shown.name if isinstance(shown, Row) else item})")

    @property
    def key(self) -> Any:
        """What two equal types have in common."""
        return self.item


register_model(Row)(models.OpaqueModel)
register_model(Rows)(models.OpaqueModel)


def _numba_type(dtype: Any) -> Any:
    # A flag is a byte that is 0 or 1.
    return numpy_support.from_dtype(np.dtype(np.uint8 if dtype is np.bool_ else dtype))


def _wide(item: types.Type) -> types.Type:
    """Returns the type of a number in memory once it is loaded."""
    return types.int64 if isinstance(item, types.Integer) else item


@intrinsic
def _rows(typing_context: Any, address: Any, dtype: Any) -> Any:
    """Types and builds the view of rows at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return signature(Rows(dtype.dtype), types.int64, dtype), codegen


# For type checkers: an intrinsic is called without its typing context.
rows: Any = _rows


def _place(context: Any, builder: Any, item: Any, base: Any, index: Any, index_type: Any) -> Any:
    """Returns the address of a row."""
    index = context.cast(builder, index, index_type, types.int64)
    size = item.size if isinstance(item, types.Record) else item.bitwidth // 8
    offset = builder.mul(index, context.get_constant(types.int64, size), flags=["nsw"])
    return builder.gep(base, [offset], inbounds=True)


@intrinsic
def _prefetch(typing_context: Any, view: Any, index: Any) -> Any:
    """Types and builds a hint that a row will be read soon, so that memory answers while others are worked on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0].item, args[0], args[1], signature.args[1])
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # To read it, into every cache, as data: it is asked for whatever it holds, so a hint changes no result.
        builder.call(function, [place, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return signature(types.none, view, index), codegen


# For type checkers: an intrinsic is called without its typing context.
prefetch: Any = _prefetch


def _load(context: Any, builder: Any, item: Any, place: Any, is_constant: bool = False) -> Any:
    """Returns a number from memory, integers as int64."""
    pointer = builder.bitcast(place, context.get_data_type(item).as_pointer())
    value = builder.load(pointer, align=item.bitwidth // 8)
    if is_constant:
        value.set_metadata("invariant.load", builder.module.add_metadata([]))
    return context.cast(builder, value, item, _wide(item))


def _store(context: Any, builder: Any, item: Any, place: Any, value: Any) -> None:
    """Puts an int64, or another number as it is, into memory."""
    pointer = builder.bitcast(place, context.get_data_type(item).as_pointer())
    builder.store(context.cast(builder, value, _wide(item), item), pointer, align=item.bitwidth // 8)


@infer_global(operator.getitem)
class _TypeOfRow(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if isinstance(args[0], Rows) and isinstance(args[1], types.Integer):
            return signature(args[0].shown, args[0], args[1])
        return None


@infer_global(operator.setitem)
class _TypeOfStore(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if isinstance(args[0], Rows) and isinstance(args[1], types.Integer):
            return signature(types.none, args[0], args[1], args[0].shown)
        return None


@lower_builtin(operator.getitem, Rows, types.Integer)
def _get_row(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    item = sig.args[0].item
    place = _place(context, builder, item, args[0], args[1], sig.args[1])
    return place if isinstance(item, types.Record) else _load(context, builder, item, place)


@lower_builtin(operator.setitem, Rows, types.Integer, types.Number)
@lower_builtin(operator.setitem, Rows, types.Integer, types.Boolean)
def _set_row(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    item = sig.args[0].item
    place = _place(context, builder, item, args[0], args[1], sig.args[1])
    _store(context, builder, item, place, context.cast(builder, args[2], sig.args[2], _wide(item)))


@infer_getattr
class _TypeOfField(AttributeTemplate):
    key = Row

    def generic_resolve(self, row: Row, name: str) -> Any:  # type: ignore[override]
        if row.is_root and name in ARRAYS:
            return Rows(_numba_type(ARRAYS[name]))
        if name not in row.record.fields:
            return None
        item = row.record.typeof(name)
        if isinstance(item, types.Record):
            return Row(item)
        return Rows(item.dtype) if isinstance(item, types.NestedArray) else _wide(item)


def _field(context: Any, builder: Any, row: Row, base: Any, name: str) -> Any:
    """Returns the address of a field."""
    return builder.gep(base, [context.get_constant(types.int64, row.record.offset(name))], inbounds=True)


@lower_getattr_generic(Row)
def _get_field(context: Any, builder: Any, row: Row, base: Any, name: str) -> Any:
    if row.is_root and name in ARRAYS:
        address = _load(context, builder, types.int64, _field(context, builder, row, base, f"{name}_at"), True)
        return builder.inttoptr(address, cgutils.voidptr_t)
    place = _field(context, builder, row, base, name)
    item = row.record.typeof(name)
    if isinstance(item, types.Record | types.NestedArray):
        return place
    return _load(context, builder, item, place, name in row.constant)


@lower_setattr_generic(Row)
def _set_field(context: Any, builder: Any, sig: Any, args: Any, name: str) -> None:
    row = sig.args[0]
    assert name not in row.constant, name
    item = row.record.typeof(name)
    value = context.cast(builder, args[1], sig.args[1], _wide(item))
    _store(context, builder, item, _field(context, builder, row, args[0], name), value)
