"""Every tier of FP8NP_CPU that this machine has: products and convolutions of all shapes, each tier in a process of its own.

What is checked there is in `_tiers.py`. Each tier keeps its compiled kernels in a directory of its own: the first run compiles them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fp8np.kernels._cpu import Cpu, describe
from fp8np.kernels._jit import compiled

pytestmark = pytest.mark.skipif(not compiled(), reason="starts processes that compile")

TESTS = Path(__file__).parent
TIERS = [cpu.tier for cpu in Cpu]


def python(code: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join((str(TESTS), str(TESTS.parent)))
    kept = {name: value for name, value in os.environ.items() if name != "FP8NP_CPU"}
    environment = {**kept, "PYTHONPATH": paths, "FP8NP_THREADS": "2", **variables}
    return subprocess.run([sys.executable, "-W", "error", *code], env=environment, capture_output=True, text=True, check=False)


def has(tier: str) -> bool:
    return Cpu(TIERS.index(tier)) <= describe().cpu


@pytest.fixture(scope="module")
def results() -> Any:
    """Of each tier, in a process each, two at a time; and, under "uncompiled", of kernels run as plain Python."""
    with ThreadPoolExecutor(2) as pool:
        script = [str(TESTS / "_tiers.py")]
        runs: dict[str, Future[Any]] = {tier: pool.submit(python, script, FP8NP_CPU=tier) for tier in TIERS if has(tier)}
        runs["uncompiled"] = pool.submit(python, script, NUMBA_DISABLE_JIT="1")
        yield runs


def result(runs: Any, name: str) -> Any:
    done = runs[name].result()
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("tier", TIERS)
def test_tier(tier: str, results: Any) -> None:
    if not has(tier):
        pytest.skip(f"this machine has no {tier}: {describe().reason}")
    assert result(results, tier)["tier"] == tier


@pytest.mark.parametrize("tier", TIERS)
def test_what_is_promised_has_the_same_bits_on_every_tier(tier: str, results: Any) -> None:
    """ "exact", "sequential" and "hopper"."""
    if not has(tier):
        pytest.skip(f"this machine has no {tier}")
    own, plain = result(results, tier), result(results, "plain")
    assert own["all"] == plain["all"]
    assert len(own["all"]) > 100
    assert len(set(own["all"])) > 80


def test_uncompiled(results: Any) -> None:
    """NUMBA_DISABLE_JIT=1: the plain tier, in Python and NumPy, with the same bits."""
    own = result(results, "uncompiled")
    assert own["tier"] == "plain"
    assert own["tiny"] == result(results, "plain")["tiny"]


@pytest.mark.parametrize("name", ["avx1024", "AMX2", "sse"])
def test_an_unknown_tier_is_refused_with_the_list_of_tiers(name: str) -> None:
    done = python(["-c", "import fp8np.kernels._cpu as c; c.describe()"], FP8NP_CPU=name)
    assert done.returncode == 1
    assert f"PolicyError: FP8NP_CPU: expected one of {', '.join(TIERS)}, got {name.lower()!r}" in done.stderr


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_that_the_machine_lacks_is_refused(tier: str) -> None:
    done = python(["-c", "import fp8np.kernels._cpu as c; print(c.describe().tier, c.target())"], FP8NP_CPU=f" {tier.upper()} ")
    if has(tier):
        assert done.stdout.split()[0] == tier
    elif "FP8NP_CPU" not in os.environ:
        assert f"PolicyError: FP8NP_CPU={tier}: this machine has no more than {describe().tier}" in done.stderr
