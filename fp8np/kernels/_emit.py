"""Writing LLVM instructions: what the emitters of `_x86` and `_fma` share. Addresses are int64 values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

__all__ = ["I8", "I32", "I64", "at", "call", "clear", "load", "loop", "plus", "store", "times"]

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def at(builder: Any, address: Any, kind: Any = I8) -> Any:
    """An address as a pointer."""
    return builder.inttoptr(address, kind.as_pointer())


def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Calls an LLVM intrinsic, or a function of the C library."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(function, args)


def load(builder: Any, address: Any, kind: Any, align: int = 1) -> Any:
    """What lies at an address, which need not be aligned."""
    value = builder.load(at(builder, address, kind))
    value.align = align
    return value


def store(builder: Any, value: Any, address: Any) -> None:
    """Writes to an address, which need not be aligned."""
    builder.store(value, at(builder, address, value.type)).align = 1


def plus(builder: Any, address: Any, *offsets: Any) -> Any:
    """The sum of an address and offsets, numbers or values."""
    for offset in offsets:
        address = builder.add(address, ir.Constant(I64, offset) if isinstance(offset, int) else offset)
    return address


def times(builder: Any, value: Any, factor: int) -> Any:
    """A value times a number."""
    return builder.mul(value, ir.Constant(I64, factor))


def clear(builder: Any, address: Any, count: Any) -> None:
    """Sets bytes to zero."""
    fill = builder.module.declare_intrinsic("llvm.memset", (I8.as_pointer(), count.type))
    builder.call(fill, [at(builder, address), ir.Constant(I8, 0), count, ir.Constant(ir.IntType(1), 0)])


def loop(builder: Any, count: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """for s in range(count): carried = body(s, carried). count is at least 1."""
    before = builder.block
    block = builder.append_basic_block("step")
    after = builder.append_basic_block("done")
    builder.branch(block)
    builder.position_at_end(block)
    step = builder.phi(I64)
    step.add_incoming(ir.Constant(I64, 0), before)
    values = [builder.phi(v.type) for v in carried]
    for phi, value in zip(values, carried, strict=True):
        phi.add_incoming(value, before)
    results = body(step, values)
    following = builder.add(step, ir.Constant(I64, 1))
    step.add_incoming(following, builder.block)
    for phi, value in zip(values, results, strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), block, after)
    builder.position_at_end(after)
    return results or values
