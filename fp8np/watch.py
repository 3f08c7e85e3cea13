"""Values inside a graph, seen while it runs as a plan: what calibration, reports and the passes that measure look through."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fp8np.graph import Graph, pruned
from fp8np.model import Model

__all__ = ["Watch"]


class Watch:
    """Runs the part of a graph that some of its values need, and gives these.

    It is `fp8np.interpret.interpret` with an observer, at the speed of `Model.run`: values differ from the interpreter's by the order
    of sums.

    Args:
        graph: a checked graph.
        names: inputs, or node outputs that are not FP8.

    >>> import numpy as np
    >>> from fp8np.build import GraphBuilder
    >>> b = GraphBuilder()
    >>> y = b.node("relu", (b.input("x", ("B",), "float32"),))
    >>> graph = b.finish(b.node("neg", (y,)))
    >>> Watch(graph, [y])({"x": np.array([-1, 2], np.float32)})[y]
    array([0., 2.], dtype=float32)
    """

    def __init__(self, graph: Graph, names: Iterable[str]) -> None:
        self._inputs = {value.name for value in graph.inputs}
        self._names = tuple(dict.fromkeys(names))
        computed = {name: name for name in self._names if name not in self._inputs}
        self._model = Model(pruned(graph.replace(outputs=computed)), checked=True) if computed else None

    def __call__(self, inputs: Any) -> dict[str, Any]:
        """Each named value for one batch, an array by name.

        Args:
            inputs: an array for each input, by name.

        Raises:
            InputError, ExecutionError: a node refused the values it got, or failed; the message names it.
        """
        values = {} if self._model is None else dict(self._model.run(inputs))
        return self._named(inputs, values)

    def look(self, inputs: Any, use: Callable[[dict[str, Any]], None]) -> None:
        """Calls ``use(values)`` with each named value for one batch where it lies: without a copy, until `use` returns.

        Args:
            inputs: an array for each input, by name.
            use: told the arrays by name; they are not to be written to.

        Raises:
            InputError, ExecutionError: a node refused the values it got, or failed; the message names it.
        """
        if self._model is None:
            use(self._named(inputs, {}))
        else:
            self._model.look(inputs, lambda values: use(self._named(inputs, values)))

    def _named(self, inputs: Any, values: Any) -> dict[str, Any]:
        return {name: inputs[name] if name in self._inputs else values[name] for name in self._names}
