"""What a run of a model takes: memory for its weights, for what it computes, and for each thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fp8np._sizes import examples
from fp8np.errors import InputError
from fp8np.model import Model
from fp8np.plan import Rehearsal
from fp8np.tensor import QTensor

__all__ = ["memory", "planned"]


def planned(model: Model, given: Mapping[str, int]) -> tuple[dict[str, int], Rehearsal]:
    """A plan at the given sizes, or at examples where they are not given, and the sizes.

    Raises:
        InputError: the model cannot run at these sizes, or at any of the examples.
    """
    problem: InputError | None = None
    for sizes in examples(model.inputs, given):
        try:
            return sizes, model.rehearse(sizes)
        except InputError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def memory(model: Model, given: Mapping[str, int]) -> dict[str, Any]:
    """Bytes that a run takes, as plain data; nothing is run or compiled.

    Args:
        model: the model.
        given: sizes by name; examples for others.

    Returns:
        "sizes" that it was planned at; "weights": as they are stored, mapped from the file; "packed": what is made of weights, once for
        all runs; "arena": what one run at a time computes in; "thread": what each thread needs for itself.

    Raises:
        InputError: the model cannot run at these sizes.
    """
    sizes, rehearsal = planned(model, given)
    # Floats that are used as they are stay in the file.
    constants = model.graph.constants.values()
    return {
        "sizes": sizes,
        "weights": sum(c.nbytes for c in constants if isinstance(c, QTensor) or c.size),
        "packed": rehearsal.weights.nbytes,
        "arena": rehearsal.plan.memory,
        "thread": rehearsal.plan.program.scratch,
    }
