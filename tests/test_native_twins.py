"""The tests of native kernels once more, on small sizes, with the kernels run as the plain Python and NumPy that they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = "functions", "grid", "norm", "pointwise", "pooling", "product"
FILES = [f"test_native_{name}.py" for name in NAMES]


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="is what this test starts")
def test_uncompiled():
    tests = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *FILES]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, cwd=tests, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
