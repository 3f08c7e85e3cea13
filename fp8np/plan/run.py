"""`Plan`: runs a program and the steps in Python between its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from fp8np.graph import Structure, map_structure
from fp8np.interpret import failure
from fp8np.kernels._program import Program
from fp8np.plan.builder import Host
from fp8np.plan.storage import Buffer, Stored

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What a model does at given sizes.

    Attributes:
        program: all native steps.
        segments: in order: ranges of these, run without returning to Python; and steps in Python.
        stored: where each output is.
        outputs: their structure.
        owners: for each step, the node of the fused graph that it is of; "" for those that only bring outputs into order.
    """

    program: Program
    segments: tuple[tuple[int, int] | Host, ...]
    stored: Mapping[str, Stored]
    outputs: Structure
    owners: tuple[str, ...]

    @property
    def memory(self) -> int:
        """Bytes that a run needs beside the weights."""
        return self.program.arena

    def execute(
        self,
        inputs: Mapping[str, Any],
        *,
        seconds: MutableMapping[str, float] | None = None,
        use: Callable[[Structure], None] | None = None,
    ) -> Structure:
        """Runs the steps on arrays of the planned shapes, C-contiguous.

        Args:
            inputs: an array for each input, by name.
            seconds: if given, steps run one at a time, and the time of each is added to its owner's.
            use: if given, called with the outputs as they lie in the plan's memory, which are not returned then.

        Raises:
            InputError, ExecutionError: a step refused the values it got, or failed; the message names its node.
        """
        memory = self.program.memory()
        try:
            for name in self.program.externals:
                memory.bind(name, inputs[name].ctypes.data)
            # Infinity and NaN are data here, as on the hardware; NumPy's warnings about them would hit users as errors.
            with np.errstate(all="ignore"):
                if seconds is not None:
                    self._clocked(memory, inputs, seconds)
                else:
                    for segment in self.segments:
                        _run(segment, memory, inputs)
            if use is not None:
                return use(map_structure(lambda name: _array(self.stored[name], memory.arena, inputs), self.outputs))
            # A caller may write into what is returned, and the memory is used again.
            return map_structure(lambda name: np.array(_array(self.stored[name], memory.arena, inputs), order="C"), self.outputs)
        finally:
            self.program.release(memory)

    def _clocked(self, memory: Any, inputs: Mapping[str, Any], seconds: MutableMapping[str, float]) -> None:
        parts = (p for s in self.segments for p in ([s] if isinstance(s, Host) else [(i, i + 1) for i in range(*s)]))
        for owner, part in zip(self.owners, parts, strict=True):
            start = perf_counter()
            _run(part, memory, inputs)
            seconds[owner] = seconds.get(owner, 0.0) + perf_counter() - start


def _run(segment: tuple[int, int] | Host, memory: Any, inputs: Mapping[str, Any]) -> None:
    if isinstance(segment, Host):
        _in_python(segment, memory.arena, inputs)
    else:
        memory.run(*segment)


def _in_python(step: Host, arena: Any, inputs: Mapping[str, Any]) -> None:
    arguments = [_array(value, arena, inputs) if isinstance(value, Stored) else value for value in step.inputs]
    try:
        result = step.function(*arguments)
    except Exception as error:
        raise failure(step.node, error) from error
    results = result if isinstance(result, tuple) else (result,)
    for value, place in zip(results, step.outputs, strict=False):
        _array(place, arena, inputs)[...] = value


def _array(stored: Stored, arena: Any, inputs: Mapping[str, Any]) -> Any:
    base = stored.at.base
    if isinstance(base, Buffer):
        return np.ndarray(stored.shape, stored.dtype, arena, base.offset + stored.at.offset, stored.strides)
    array = inputs[base] if isinstance(base, str) else base
    if stored.at.offset == 0 and stored.shape == array.shape and stored.strides == array.strides:
        return array
    return np.ndarray(stored.shape, stored.dtype, array.reshape(-1).view(np.uint8), stored.at.offset, stored.strides)
