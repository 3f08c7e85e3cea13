"""The cases of each suite, one file a suite: a function from the `Setting` to a list of `Case`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from fp8np_benchmarks.case import Case, Setting

__all__ = ["SUITES", "cases"]

SUITES = ("codec", "gemm", "conv", "models", "startup", "scaling")


def cases(suites: Sequence[str], setting: Setting) -> list[Case]:
    """The cases of some suites, in the order of `SUITES`."""
    modules = [importlib.import_module(f"fp8np_benchmarks.suites.{name}") for name in SUITES if name in suites]
    return [case for module in modules for case in module.cases(setting)]
