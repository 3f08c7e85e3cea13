"""The tests of native kernels once more, on small sizes, with the kernels run as the plain Python and NumPy that they are."""

from __future__ import annotations

import os

import pytest
from _native import run_again

NAMES = "functions", "grid", "norm", "pointwise", "pooling", "product"
FILES = [f"test_native_{name}.py" for name in NAMES]


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="is what this test starts")
def test_uncompiled():
    run_again(*FILES, NUMBA_DISABLE_JIT="1")
