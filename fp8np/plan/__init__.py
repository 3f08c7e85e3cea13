"""A plan: a graph bound to concrete sizes, as a frozen list of steps. Making one decides everything; running it decides nothing.

Here layers (what an op means) and kernels (how fast) meet::

    graph ─► fuse ─► lower each node ─► give buffers their places ─► Program, and steps in Python between its parts

A plan holds no values: each run works in a memory of its own, so any number of threads may run one at the same time.
"""

from __future__ import annotations

from fp8np.plan.fuse import fused
from fp8np.plan.make import make_plan
from fp8np.plan.rehearse import Rehearsal, rehearse
from fp8np.plan.run import Plan
from fp8np.plan.weights import Weights

__all__ = ["Plan", "Rehearsal", "Weights", "fused", "make_plan", "rehearse"]
