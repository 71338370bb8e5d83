"""A table of pretokens: open-addressed, a key and a value of 64 bits each beside each other; no key is 0."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types

from pipelines.kernels.bytemasks import intrinsic, word_at
from pipelines.kernels.word_hashes import COMBINE, MULTIPLIER, U64, mix

ZERO = U64(0)


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Have the cache line of an item fetched, which will be read soon."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(fetch, [address, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@numba.njit(cache=True, nogil=True, inline="always")
def place(table: Any, shift: int, key: Any) -> Any:
    """Where the search for a key begins."""
    return np.int64((key * MULTIPLIER) >> U64(shift)) << 1


@numba.njit(cache=True, nogil=True, inline="always")
def pretoken_key(data: Any, i: int, stop: int) -> Any:
    """The bytes themselves and their number, of up to 7; else a hash, which is none of those. 8 readable bytes follow the data."""
    size = stop - i
    if size < 8:
        return (word_at(data, i) & ((U64(1) << U64(8 * size)) - U64(1))) | U64(size) << U64(56)
    key = mix(U64(size))  # not the number itself, which a first byte could outweigh
    while i + 8 <= stop:
        key = mix((key ^ word_at(data, i)) * MULTIPLIER)
        i += 8
    if i < stop:
        key = mix((key ^ word_at(data, stop - 8)) * COMBINE)
    return key | (U64(1) << U64(63))


@numba.njit(cache=True, nogil=True, inline="always")
def find(table: Any, shift: int, key: Any) -> int:
    """Where the key stands in the table, or the free place for it; its value is in the next place.

    Args:
        table: uint64, two for each of `1 << (64 - shift)` places.
    """
    slot = place(table, shift, key)
    while table[slot] != key and table[slot] != ZERO:
        slot = (slot + 2) & (len(table) - 1)
    return slot


@numba.njit(cache=True, nogil=True)
def rehash(table: Any, larger: Any, shift: int) -> None:
    """Enter all of a table into a larger, empty one."""
    for i in range(0, len(table), 2):
        if table[i] != ZERO:
            slot = find(larger, shift, table[i])
            larger[slot], larger[slot + 1] = table[i], table[i + 1]


@numba.njit(cache=True, nogil=True)
def enter(keys: Any, values: Any, table: Any, shift: int) -> None:
    """Enter keys with their values; of equal ones the last."""
    for i in range(len(keys)):
        slot = find(table, shift, keys[i])
        table[slot], table[slot + 1] = keys[i], values[i]


@numba.njit(cache=True, nogil=True)
def keys_of(data: Any, bounds: Any, keys: Any) -> None:
    """The keys of pretokens that stand one after the other."""
    for i in range(len(keys)):
        keys[i] = pretoken_key(data, bounds[i], bounds[i + 1])
