"""Text by 64 bytes at a time: one bit a byte, as simdjson has it (Langdale and Lemire 2019, "Parsing gigabytes of JSON per
second").

Whether a byte stands in a word is decided for 64 of them by a few vector instructions; what is left to do for each word
is to count trailing zeros. Without branches on single bytes there is nothing to mispredict, and that is what reading
text byte by byte spends its time on. LLVM turns these operations into AVX-512, AVX2, NEON or plain code, as the machine
has it.

Offsets given to `within`, `equals`, `word_at` and `copy_lower` are not checked: the caller sees to it that the bytes are there.
"""

from __future__ import annotations

from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic as _intrinsic

BLOCK = 64
ONE = np.uint64(1)
intrinsic = cast(Any, _intrinsic)  # what it makes takes other arguments than what it is given
_BYTE, _WORD = ir.IntType(8), ir.IntType(64)
_BYTES = ir.VectorType(_BYTE, BLOCK)


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, value=array).data
    return builder.gep(builder.bitcast(data, _BYTE.as_pointer()), [offset])


def _load(builder: Any, address: Any, kind: Any) -> Any:
    loaded = builder.load(builder.bitcast(address, kind.as_pointer()))
    loaded.align = 1
    return loaded


def _splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_BYTES, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(
        one, ir.Constant(_BYTES, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK)
    )


@intrinsic
def within(typing_context: Any, data: Any, offset: Any, low: Any, high: Any) -> Any:
    """Bit i: whether low <= data[offset + i] <= high (uint8), for 64 bytes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bytes_ = _load(builder, _address(context, builder, signature.args[0], args[0], args[1]), _BYTES)
        low_, high_ = _splat(builder, args[2]), _splat(builder, args[3])
        bits = builder.icmp_unsigned("<=", builder.sub(bytes_, low_), builder.sub(high_, low_))
        return builder.bitcast(bits, _WORD)

    return types.uint64(data, types.intp, types.uint8, types.uint8), codegen


@intrinsic
def equals(typing_context: Any, data: Any, offset: Any, byte: Any) -> Any:
    """Bit i: whether data[offset + i] is this byte, for 64 bytes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bytes_ = _load(builder, _address(context, builder, signature.args[0], args[0], args[1]), _BYTES)
        return builder.bitcast(builder.icmp_unsigned("==", bytes_, _splat(builder, args[2])), _WORD)

    return types.uint64(data, types.intp, types.uint8), codegen


@intrinsic
def copy_lower(typing_context: Any, data: Any, offset: Any, out: Any, at: Any) -> Any:
    """Copy 64 bytes, ASCII letters in lower case."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bytes_ = _load(builder, _address(context, builder, signature.args[0], args[0], args[1]), _BYTES)
        a, z = (ir.Constant(_BYTES, [value] * BLOCK) for value in (0x41, 25))
        upper = builder.icmp_unsigned("<=", builder.sub(bytes_, a), z)
        step = builder.select(upper, ir.Constant(_BYTES, [0x20] * BLOCK), ir.Constant(_BYTES, [0] * BLOCK))
        target = _address(context, builder, signature.args[2], args[2], args[3])
        builder.store(builder.add(bytes_, step), builder.bitcast(target, _BYTES.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(data, types.intp, out, types.intp), codegen


@intrinsic
def copy(typing_context: Any, data: Any, offset: Any, out: Any, at: Any) -> Any:
    """Copy 64 bytes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bytes_ = _load(builder, _address(context, builder, signature.args[0], args[0], args[1]), _BYTES)
        target = _address(context, builder, signature.args[2], args[2], args[3])
        builder.store(bytes_, builder.bitcast(target, _BYTES.as_pointer())).align = 1
        return context.get_dummy_value()

    return types.void(data, types.intp, out, types.intp), codegen


@intrinsic
def word_at(typing_context: Any, data: Any, offset: Any) -> Any:
    """The 8 bytes at this offset as a number, the first of them lowest."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _load(builder, _address(context, builder, signature.args[0], args[0], args[1]), _WORD)

    return types.uint64(data, types.intp), codegen


@intrinsic
def trailing_zeros(typing_context: Any, value: Any) -> Any:
    """Of a mask that is not 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@intrinsic
def ones(typing_context: Any, value: Any) -> Any:
    """How many bits are set."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


@cast(Any, numba.njit(cache=True, nogil=True, inline="always"))
def write_bits(bits: Any, offset: int, out: Any, count: int) -> int:
    """Write the places of the set bits, plus `offset`, to `out[count:]`; the new count."""
    while bits:
        out[count] = offset + trailing_zeros(bits)
        count += 1
        bits &= bits - ONE
    return count
