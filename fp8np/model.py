"""`load`, `run` and `Model`: a converted model, ready to be called. No PyTorch anywhere."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fp8np.artifact import load_graph
from fp8np.check import check
from fp8np.graph import Graph, Structure, Value
from fp8np.inputs import declared_arrays, signature
from fp8np.interpret import bind_sizes
from fp8np.kernels._jit import prepare
from fp8np.kernels._program import cold
from fp8np.kernels._threads import threads as thread_limit
from fp8np.plan import Plan, Rehearsal, Weights, fused, make_plan, rehearse

__all__ = ["Model", "load", "run"]

# Plans are small (no weights, no buffers), but a service that sees every length must not collect them without end.
_MAX_PLANS = 64


class Model:
    """A model that can be run, at any of the sizes its inputs leave open, by any number of threads at a time.

    Args:
        graph: what a converter or a pass gives.
        checked: whether the graph is known to keep every invariant; otherwise it is checked here.

    Raises:
        GraphError: the graph breaks an invariant.

    >>> import numpy as np
    >>> from fp8np.build import GraphBuilder
    >>> b = GraphBuilder()
    >>> x = b.input("x", ("B", 3), "float32")
    >>> model = Model(b.finish(b.node("relu", (x,))))
    >>> model.run(np.array([[-1.0, 0.0, 2.0]], np.float32))
    array([[0., 0., 2.]], dtype=float32)
    """

    def __init__(self, graph: Graph, *, checked: bool = False) -> None:
        self._graph = graph if checked else check(graph)
        self._ready: tuple[Graph, Weights] | None = None
        self._plans: OrderedDict[tuple[tuple[int, ...], ...], Plan] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def graph(self) -> Graph:
        """What the model computes."""
        return self._graph

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Name, shape and type of each input, in order."""
        return self._graph.inputs

    def run(self, inputs: Any, *, threads: int | None = None) -> Structure:
        """The model's outputs for one batch.

        Args:
            inputs: an array (a model with one input), a sequence of arrays in the order of `inputs`, or a mapping by name.
                Floats of other widths are converted, integers too where none is lost.
            threads: how many threads kernels may use; by default `fp8np.set_num_threads`. The bits do not depend on it.

        Returns:
            Arrays in the structure that the model was written with: one array, or tuples, lists and dicts of arrays.

        Raises:
            InputError: an input is missing, unknown, or of a wrong shape or type; the message says what was expected.
            ExecutionError: a node failed.
        """
        arrays = declared_arrays(self._graph.inputs, inputs)
        plan = self._plan(arrays)
        with thread_limit(threads):
            return plan.execute(arrays)

    __call__ = run

    def look(self, inputs: Any, use: Callable[[Structure], None], *, threads: int | None = None) -> None:
        """Calls ``use(outputs)`` with the outputs where they lie: without a copy, in whatever order of axes in memory.

        They hold until `use` returns, and are not to be written to.

        Args:
            inputs: as for `run`.
            use: told the outputs, in the structure that `run` returns.
            threads: as for `run`.

        Raises:
            InputError, ExecutionError: as `run` does.
        """
        arrays = declared_arrays(self._graph.inputs, inputs)
        plan = self._plan(arrays)
        with thread_limit(threads):
            plan.execute(arrays, use=use)

    def node_seconds(self, inputs: Any, *, threads: int | None = None) -> dict[str, float]:
        """Runs one batch step by step and gives the seconds that each node's steps took.

        What a plan joins (a convolution, the sum and the activation behind it) counts for the first of them; nodes that are views
        of others' memory take no time and are not there. "" is what brings outputs into order.

        Args:
            inputs: as for `run`.
            threads: as for `run`.

        Raises:
            InputError, ExecutionError: as `run` does.
        """
        arrays = declared_arrays(self._graph.inputs, inputs)
        seconds: dict[str, float] = {}
        with thread_limit(threads):
            self._plan(arrays).execute(arrays, seconds=seconds)
        return seconds

    def _plan(self, arrays: Mapping[str, Any]) -> Plan:
        key = tuple(array.shape for array in arrays.values())
        with self._lock:
            plan = self._plans.get(key)
            if plan is not None:
                self._plans.move_to_end(key)
                return plan
        graph, weights = self._in_use()
        sizes = bind_sizes(self._graph, arrays)
        if cold():
            # All that a first run needs at once, so that who watches can say how much there is.
            prepare(rehearse(graph, sizes).entries)
        plan = make_plan(graph, sizes, weights)
        with self._lock:
            self._plans[key] = plan
            while len(self._plans) > _MAX_PLANS:
                self._plans.popitem(last=False)
        return plan

    def _in_use(self) -> tuple[Graph, Weights]:
        # What plans are made of.
        with self._lock:
            if self._ready is None:
                graph = fused(self._graph)
                self._ready = graph, Weights(graph.constants)
            return self._ready

    def rehearse(self, sizes: Mapping[str, int]) -> Rehearsal:
        """What a run takes at the given sizes, by name: memory, and the kernels that it calls. Nothing is run, nothing is compiled.

        Raises:
            InputError: the model cannot run at these sizes.
        """
        return rehearse(self._in_use()[0], sizes)

    def __repr__(self) -> str:
        return f"Model({signature(self._graph.inputs)}; {len(self._graph.nodes)} nodes)"


def load(path: str | os.PathLike[str]) -> Model:
    """Opens a converted model. Weights are memory-mapped: they are read when first used.

    Raises:
        ArtifactError: the file is damaged or not a converted model. ArtifactVersionError: it needs a newer fp8np.
        FileNotFoundError: there is no such file.
    """
    return Model(load_graph(Path(path)), checked=True)


def run(model: Model | str | os.PathLike[str], inputs: Any, *, threads: int | None = None) -> Structure:
    """Runs a model, or the converted model in a file, on one batch: see `Model.run`.

    For many batches, `load` once: a path is opened anew at each call.
    """
    return (model if isinstance(model, Model) else load(model)).run(inputs, threads=threads)
