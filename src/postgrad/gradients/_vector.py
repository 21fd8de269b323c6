"""Instruction sequences that numba's language cannot express: sums of rows in registers, masks of comparisons."""

from __future__ import annotations

import functools
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic as _intrinsic

intrinsic: Any = _intrinsic  # numba's own types say that it is called with its first argument, the context
compiled = functools.partial(numba.njit, nogil=True, cache=True, error_model="numpy")
"""Compiled without the interpreter's lock, kept on disk; numpy's error model, since a division that may raise cannot be
vectorised."""

_LANES = 16


def _sum_of_rows(width: int) -> Any:
    """`out[at : at + width] = (add ? itself : 0) + Σᵢ values[i] · matrix[shift + stride · places[i] :][:width]`.

    i runs from `first` to `last`; all arrays are flat and contiguous, `out`, `matrix` and `values` float32. A loop over
    numba arrays reads and writes its sums in memory for each row that is added; this one keeps them in registers, which
    is faster. LLVM splits the vectors where the processor's are shorter.
    """

    @intrinsic
    def sum_of_rows(  # type: ignore[no-untyped-def]
        typing_context, out, at, matrix, shift, stride, places, values, first, last, add
    ):
        signature = types.void(out, at, matrix, shift, stride, places, values, first, last, add)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, at, _, shift, stride, _, _, first, last, add = arguments
            data = [
                context.make_array(kind)(context, builder, argument).data if isinstance(kind, types.Array) else None
                for kind, argument in zip(signature.args, arguments, strict=True)
            ]
            target, source = builder.gep(data[0], [at]), builder.gep(data[2], [shift])
            lanes = min(width, _LANES)
            vector = ir.VectorType(ir.FloatType(), lanes)
            pieces = range(0, width, lanes)
            word = first.type

            def place(base, piece):  # type: ignore[no-untyped-def]
                return builder.bitcast(builder.gep(base, [ir.Constant(word, piece)]), vector.as_pointer())

            def load(base, piece):  # type: ignore[no-untyped-def]
                return builder.load(place(base, piece), align=4)

            zero = ir.Constant(vector, [0.0] * lanes)
            starts = [builder.select(add, load(target, piece), zero) for piece in pieces]
            before = builder.block
            test, body, after = (builder.append_basic_block(name) for name in ("test", "body", "after"))
            builder.branch(test)

            builder.position_at_end(test)
            i = builder.phi(word)
            i.add_incoming(first, before)
            sums = [builder.phi(vector) for _ in pieces]
            for total, start in zip(sums, starts, strict=True):
                total.add_incoming(start, before)
            builder.cbranch(builder.icmp_signed("<", i, last), body, after)

            builder.position_at_end(body)
            number = builder.sext(builder.load(builder.gep(data[5], [i])), word)
            value = builder.load(builder.gep(data[6], [i]))
            row = builder.gep(source, [builder.mul(number, stride)])
            spread = _spread(builder, value, vector)
            multiply_add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f32"
            )
            for total, piece in zip(sums, pieces, strict=True):
                total.add_incoming(builder.call(multiply_add, [load(row, piece), spread, total]), builder.block)
            i.add_incoming(builder.add(i, ir.Constant(word, 1)), builder.block)
            builder.branch(test)

            builder.position_at_end(after)
            for total, piece in zip(sums, pieces, strict=True):
                builder.store(total, place(target, piece), align=4)
            return context.get_dummy_value()

        return signature, generate

    return sum_of_rows


_sum_of_64 = _sum_of_rows(64)
_sum_of_32 = _sum_of_rows(32)
_sum_of_16 = _sum_of_rows(16)
_sum_of_4 = _sum_of_rows(4)
_sum_of_1 = _sum_of_rows(1)


@compiled()
def sum_of_rows(out, at, width, matrix, shift, stride, places, values, first, last):  # type: ignore[no-untyped-def]
    """`out[at : at + width]` = the sum of rows, for any width.

    The last piece goes back over numbers that are there already and finds them again: that is cheaper than several
    narrow ones, in which each addition waits for the one before.
    """
    done = 0
    while done + 64 <= width:
        _sum_of_64(out, at + done, matrix, shift + done, stride, places, values, first, last, False)
        done += 64
    rest = width - done
    if rest == 0:
        return
    if rest > 32 and width >= 64:
        done = width - 64
        _sum_of_64(out, at + done, matrix, shift + done, stride, places, values, first, last, False)
    elif rest > 16 and width >= 32:
        if rest > 32:
            _sum_of_32(out, at + done, matrix, shift + done, stride, places, values, first, last, False)
        done = width - 32
        _sum_of_32(out, at + done, matrix, shift + done, stride, places, values, first, last, False)
    elif width >= 16:
        if rest > 16:
            _sum_of_16(out, at + done, matrix, shift + done, stride, places, values, first, last, False)
        done = width - 16
        _sum_of_16(out, at + done, matrix, shift + done, stride, places, values, first, last, False)
    else:
        while done + 4 <= width:
            _sum_of_4(out, at + done, matrix, shift + done, stride, places, values, first, last, False)
            done += 4
        while done < width:
            _sum_of_1(out, at + done, matrix, shift + done, stride, places, values, first, last, False)
            done += 1


@compiled()
def add_sum_of_rows(out, at, width, matrix, shift, stride, places, values, first, last):  # type: ignore[no-untyped-def]
    """The same, added to what `out` holds."""
    done = 0
    while done + 64 <= width:
        _sum_of_64(out, at + done, matrix, shift + done, stride, places, values, first, last, True)
        done += 64
    while done + 16 <= width:
        _sum_of_16(out, at + done, matrix, shift + done, stride, places, values, first, last, True)
        done += 16
    while done < width:
        _sum_of_1(out, at + done, matrix, shift + done, stride, places, values, first, last, True)
        done += 1


@intrinsic
def copy_of_8(typing_context, out, at, source, start):  # type: ignore[no-untyped-def]
    """`out[at : at + 8] = source[start : start + 8]` of flat float32 arrays, as one load and one store."""
    signature = types.void(out, at, source, start)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = ir.VectorType(ir.FloatType(), 8).as_pointer()
        target, origin = (
            builder.bitcast(builder.gep(context.make_array(kind)(context, builder, array).data, [place]), vector)
            for kind, array, place in zip(signature.args[::2], arguments[::2], arguments[1::2], strict=True)
        )
        builder.store(builder.load(origin, align=4), target, align=4)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def within_64(typing_context, bits, at, low, span):  # type: ignore[no-untyped-def]
    """Which of `bits[at : at + 64]` have a magnitude (without the sign bit) from `low` to `low + span`: a bit for each.

    One comparison of vectors; `bits` is a flat uint32 array, of the others 32 bits count (numba widens what it adds).
    """
    signature = types.uint64(bits, at, low, span)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kind, array = signature.args[0], arguments[0]
        word, mask = ir.IntType(32), ir.IntType(64)
        vector = ir.VectorType(word, 64)
        origin = builder.gep(context.make_array(kind)(context, builder, array).data, [arguments[1]])
        values = builder.load(builder.bitcast(origin, vector.as_pointer()), align=4)
        magnitudes = builder.and_(values, ir.Constant(vector, [0x7FFFFFFF] * 64))
        low, span = (
            _spread(builder, value if value.type == word else builder.trunc(value, word), vector)
            for value in arguments[2:]
        )
        above = builder.sub(magnitudes, low)  # wraps around for what is below
        inside = builder.icmp_unsigned("<=", above, span)
        return builder.bitcast(inside, mask)

    return signature, generate


def _spread(builder, value, vector):  # type: ignore[no-untyped-def]
    """A vector of one value, repeated."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None))


@intrinsic
def lowest_bit(typing_context, mask):  # type: ignore[no-untyped-def]
    """The place of the lowest 1 of a uint64 that is not zero."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@intrinsic
def bits_set(typing_context, mask):  # type: ignore[no-untyped-def]
    """How many bits of a uint64 are 1."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate
