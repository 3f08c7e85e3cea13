"""The one way to measure: every result is checked, then all take turns on the same cores."""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fp8np_benchmarks.case import OURS, Case, CheckError, Ready, SkipCase, is_ours
from fp8np_benchmarks.machine import limited, tier
from fp8np_benchmarks.results import Row

__all__ = ["QUICK", "Pace", "measured", "run_case", "run_cases"]

Gauge = Callable[[Callable[[], Any], int], float]
"""What one call takes, on average over so many."""


@dataclass(frozen=True)
class Pace:
    """How long to measure.

    Attributes:
        rounds: in which each entry is timed once.
        pause: seconds before each: the threads of BLAS and OpenMP spin for tens of milliseconds after they have worked, on the
            cores that the next entry needs.
        stretch: seconds that a timing lasts at least; shorter calls are repeated within it.
        budget: seconds after which a case has to do with `fewest` rounds.
        fewest: rounds, at least.
    """

    rounds: int = 11
    pause: float = 0.1
    stretch: float = 0.01
    budget: float = 40.0
    fewest: int = 5


QUICK = Pace(rounds=3, pause=0.0, stretch=0.0, budget=5.0, fewest=2)
"""For a smoke test: the figures mean little."""


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """By the clock."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def returned_bytes(call: Callable[[], Any], repeats: int) -> float:
    """By what the entry says."""
    return float(call()[0])


GAUGES: Mapping[str, Gauge] = {"seconds": seconds, "bytes": returned_bytes}


def measured(
    entries: Mapping[str, Callable[[], Any]],
    pace: Pace,
    *,
    gauge: Gauge = seconds,
    warm: bool = True,
    rounds: int | None = None,
) -> dict[str, list[float]]:
    """Samples of each entry, from rounds in which all run one after the other; each round starts with another one.

    Before a timing comes a pause, and an untimed call that wakes the entry's threads and fills its caches again.
    """
    start = time.perf_counter()
    firsts = {name: gauge(call, 1) for name, call in entries.items()} if warm and gauge is seconds else {}
    a_round = (time.perf_counter() - start) * 2 + pace.pause * len(entries)
    repeats = {name: max(1, math.ceil(pace.stretch / max(first, 1e-9))) for name, first in firsts.items()}
    count = min(rounds or pace.rounds, pace.rounds)
    if firsts:
        count = min(count, max(pace.fewest, int(pace.budget / a_round)))
    samples: dict[str, list[float]] = {name: [] for name in entries}
    names = list(entries)
    gc.collect()
    for turn in range(count):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(pace.pause)
            if warm:
                entries[name]()
            samples[name].append(gauge(entries[name], repeats.get(name, 1)))
    return samples


def run_case(case: Case, pace: Pace) -> Row:
    """Prepares a case, checks every entry's result, and times those that are right; nobody if ours is wrong."""
    row = Row(case.suite, case.name, case.threads, tier(), case.work, case.unit, case.traffic, case.measured)
    try:
        ready = case.prepare()
    except SkipCase as reason:
        return replace(row, skipped=str(reason))
    except Exception as error:
        return replace(row, failed={OURS: f"could not be prepared: {_words(error)}"})
    if isinstance(ready, Row):
        return replace(ready, name=case.name)
    with limited(case.threads):
        checked, failed, absent = _checked(ready)
        row = replace(row, checked=checked, failed=failed, absent=absent)
        if OURS in failed:
            return row
        ceiling = None if case.ceiling is None else case.ceiling()
        entries = {name: call for name, call in ready.entries.items() if name in checked}
        try:
            samples = measured(entries, pace, gauge=GAUGES[case.measured], warm=case.warm, rounds=case.rounds)
        except Exception as error:
            return replace(row, failed={**failed, OURS: f"failed while it or a peer was timed: {_words(error)}"})
    return replace(row, samples=samples, ceiling=None if ceiling is None else (ceiling.name, ceiling.rate))


def _checked(ready: Ready) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """What was found right, what wrong, and which peers did not run."""
    checked: dict[str, str] = {}
    failed: dict[str, str] = {}
    absent = dict(ready.absent)
    for name, call in ready.entries.items():
        try:
            result = call()
        except Exception as error:
            # A peer that refuses, a CPU without an instruction for example, is not a wrong result.
            (failed if is_ours(name) else absent)[name] = f"does not run: {_words(error)}"
            continue
        try:
            checked[name] = ready.check(name, result)
        except CheckError as error:
            failed[name] = str(error)
        except Exception as error:
            failed[name] = f"could not be checked: {_words(error)}"
    return checked, failed, absent


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def run_cases(cases: Sequence[Case], pace: Pace, told: Callable[[str, int, int], None]) -> Iterator[Row]:
    """Runs them one after the other; `told` hears the suite, how many of its cases are done, and of how many."""
    counts = Counter(case.suite for case in cases)
    done: Counter[str] = Counter()
    for case in cases:
        told(case.suite, done[case.suite], counts[case.suite])
        yield run_case(case, pace)
        done[case.suite] += 1
        told(case.suite, done[case.suite], counts[case.suite])
