"""All 2^32 float32 numbers, converted under every preset: compared with the law, with libraries, and with what hardware gave.

The law comes as runs (`fp8np.verify.runs`), so an expected code costs a memset and a comparison; the time goes into converting.
Recorded digests are compared chunk by chunk. Where the law has the digest of the hardware, codes that equal the law's do too, and
differences from the law are differences from the hardware: that is how the first differing number is found.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np._settings import cache_dir
from fp8np.data import Progress
from fp8np.errors import MissingDependencyError, PolicyError
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.kernels._threads import get_num_threads, threads
from fp8np.policy import Policy
from fp8np.verify import diagnose
from fp8np.verify._judge import SHOWN, code_text, number_text
from fp8np.verify._result import Difference, Row
from fp8np.verify._state import State, key_of
from fp8np.verify.cases import inputs
from fp8np.verify.digests import Recorded, recorded, shipped_for
from fp8np.verify.implementation import BadResult, Checked, NotOffered, Ours
from fp8np.verify.references import REFERENCES
from fp8np.verify.runs import CHUNK, CHUNKS, Runs, chunk_digest, conversions, label, root_digest, runs
from fp8np.verify.suite import checked

__all__ = ["DIGESTS", "SUITE", "THE_LAW", "exhaustive", "live"]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.uint8]
Convert = Callable[[Array], Array]

SUITE = "exhaustive"
DIGESTS = "exhaustive digest"
THE_LAW = "the law"
WHAT = "all float32 numbers"

LIVE = ("ml_dtypes", "torch")
"""The libraries that convert fast enough; others would take hours for each format."""

# Numbers converted at once: 4 MiB and their codes stay in the cache of a core.
PIECE = 1 << 20
_LOW = np.arange(PIECE, dtype=np.uint32)

KEPT = 32
"""Differences of a chunk that are kept, to be diagnosed."""


def exhaustive(
    implementation: Any = None,
    formats: Iterable[Any] | None = None,
    *,
    libraries: bool = True,
    chunks: Iterable[int] | None = None,
    resume: bool = True,
    state_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    facts: dict[str, Any] | None = None,
) -> Iterator[Row]:
    """Converts every float32 number under every policy that a preset has (stochastic ones left out), and under the common two.

    Args:
        implementation: an object with `encode` (`fp8np.verify.implementation.Implementation`), or ``"pkg.mod:object"``; None for
            fp8np itself.
        formats: names or formats. None means all of the table.
        libraries: whether ml_dtypes and torch convert all numbers too, where they are installed and have the conversion.
        chunks: which of the 256 chunks of 2^24 numbers, by their topmost byte. None means all.
        resume: whether to keep what is found, and to go on where a run stopped that was cut off. What was finished is not kept: the
            next run is a new one.
        state_dir: the folder to keep it in. None means a per-user cache directory for fp8np itself, and nothing for other
            implementations: that their code is the same as before cannot be told for sure.
        workers: threads that convert. None means the usual number for fp8np itself, and one for other implementations, which
            may not bear more.
        progress: called with (what is done, chunks done, chunks in all).
        facts: receives, under ``"exhaustive"``, the workers, the state folder, and the seconds that each format took.

    Yields:
        As soon as a conversion is done: a row against the law, one for each library, and one for each set of recorded digests. Counts
        are of numbers.

    Raises:
        FormatError: a format is unknown. PolicyError: workers or chunks are out of range. InputError: there is no such implementation.

    Leaving the loop early, or Ctrl-C, stops the work within a chunk.

    >>> rows = list(exhaustive(formats=["float8_e3m4fn"], chunks=[0x3F], libraries=False, resume=False))
    >>> [(row.reference, row.cases, row.mismatches) for row in rows]
    [('the law', 16777216, 0), ('the law', 16777216, 0)]
    """
    fmts = tuple(FORMATS.values()) if formats is None else tuple(get_format(f) for f in formats)
    under_test = checked(implementation)
    ours = isinstance(under_test.implementation, Ours)
    wanted = tuple(range(CHUNKS)) if chunks is None else tuple(chunks)
    if not wanted or min(wanted) < 0 or max(wanted) >= CHUNKS:
        raise PolicyError(f"exhaustive: expected chunks of 0..{CHUNKS - 1}, got {wanted}")
    count = (get_num_threads() if ours else 1) if workers is None else workers
    if count < 1:
        raise PolicyError(f"exhaustive: expected at least one worker, got {workers}")
    others = live() if libraries else {}
    folder = Path(state_dir) if state_dir is not None else _default_folder() if ours else None
    titles = sorted({title for rows in others.values() for title, _ in rows})
    key = key_of(under_test.implementation, [under_test.name, *titles]) if folder else ""
    found = State(folder if resume else None, key)
    seconds = dict.fromkeys((f.name for f in fmts), 0.0)
    if facts is not None:
        facts[SUITE] = {"workers": count, "state": str(found.folder or ""), "seconds": seconds}
    run = _Run(under_test, wanted, count, found, others, progress or (lambda what, done, total: None), seconds)
    return run.rows(fmts)


def _default_folder() -> Path | None:
    cache = cache_dir()
    if cache is None:
        return None
    try:
        (cache / SUITE).mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return cache / SUITE if os.access(cache / SUITE, os.W_OK | os.X_OK) else None


def live() -> Mapping[tuple[str, Policy], list[tuple[str, Convert]]]:
    """(format, policy) -> the installed libraries that have it and are fast enough: name with version, and function."""
    found: dict[tuple[str, Policy], list[tuple[str, Convert]]] = {}
    for library in REFERENCES:
        if library.name in LIVE:
            try:
                title = f"{library.name} {library.version()}"
                for how in library.conversions():
                    found.setdefault((how.fmt.name, how.policy), []).append((title, how.encode))
            except MissingDependencyError:
                continue
    return found


@dataclass(frozen=True)
class _Task:
    """One conversion: a format and a policy."""

    fmt: FloatFormat
    policy: Policy
    name: str
    law: Runs
    encode: Convert
    libraries: list[tuple[str, Convert]]
    records: list[Recorded]


class _Tally:
    """Differences from one reference in a chunk: how many, and some of them as (bits, expected, got)."""

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[list[int]] = []

    def add(self, first: int, expected: Codes, got: Codes) -> None:
        if np.array_equal(expected, got):
            return
        at = np.flatnonzero(expected != got)
        self.count += at.size
        # The very first, and others from all over the piece.
        shown = {*at[:SHOWN].tolist(), *at[:: max(1, at.size // KEPT)].tolist()}
        room = KEPT - len(self.kept)
        self.kept += [[first + i, int(expected[i]), int(got[i])] for i in sorted(shown)[: max(room, 0)]]

    def as_json(self) -> list[Any]:
        return [self.count, self.kept]


def _convert(task: _Task, chunk: int) -> dict[str, Any]:
    """The findings of a chunk, as they are kept."""
    began = time.perf_counter()
    tallies = {THE_LAW: _Tally()} | {title: _Tally() for title, _ in task.libraries}
    bits, expected = np.empty(PIECE, np.uint32), np.empty(PIECE, np.uint8)
    # Workers share the machine by chunks; threads within one would only wait for each other.
    with threads(1), np.errstate(all="ignore"):
        for first in range(chunk * CHUNK, (chunk + 1) * CHUNK, PIECE):
            np.add(_LOW, np.uint32(first), out=bits)
            x = bits.view(np.float32)
            got = task.encode(x)
            task.law.fill(first, expected)
            tallies[THE_LAW].add(first, expected, got)
            for title, convert in task.libraries:
                tallies[title].add(first, convert(x), got)
        digest = chunk_digest(task.law, chunk)
        versus = {title: tally.as_json() for title, tally in tallies.items()}
        for i, record in enumerate(task.records):
            if record.chunks[chunk] == digest:
                versus[f"record {i}"] = versus[THE_LAW]
            else:
                same = _digest_of(task, chunk) == record.chunks[chunk]
                versus[f"record {i}"] = [0 if same else 1, []]
    return {"chunk": chunk, "seconds": round(time.perf_counter() - began, 4), "sha256": digest.hex(), "versus": versus}


def _digest_of(task: _Task, chunk: int) -> bytes:
    digest = sha256()
    for first in range(chunk * CHUNK, (chunk + 1) * CHUNK, PIECE):
        digest.update(task.encode((_LOW + np.uint32(first)).view(np.float32)).tobytes())
    return digest.digest()


@dataclass(frozen=True)
class _Run:
    implementation: Checked
    chunks: tuple[int, ...]
    workers: int
    state: State
    live: Mapping[tuple[str, Policy], list[tuple[str, Convert]]]
    progress: Progress
    seconds: dict[str, float]

    def rows(self, fmts: tuple[FloatFormat, ...]) -> Iterator[Row]:
        planned = [(fmt, policy, presets) for fmt in fmts for policy, presets in conversions(fmt).items()]
        total = len(planned) * len(self.chunks)
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="fp8np-exhaustive")
        try:
            for i, (fmt, policy, presets) in enumerate(planned):
                task = self._task(fmt, policy, presets)
                yield from self._task_rows(task, pool, i * len(self.chunks), total)
            self.state.clear()
        finally:
            pool.shutdown(cancel_futures=True)

    def _task(self, fmt: FloatFormat, policy: Policy, presets: tuple[str, ...]) -> _Task:
        # fp8np itself leaves its arguments alone, and needs no copies.
        target: Any = self.implementation
        if isinstance(target.implementation, Ours):
            target = target.implementation

        def encode(x: Array) -> Codes:
            codes: Codes = target.encode(x, fmt.name, overflow=policy.overflow, rounding=policy.rounding, nan=policy.nan)
            return codes

        def encode_preset(x: Array) -> Codes:
            codes: Codes = target.encode_preset(x, fmt.name, presets[0])
            return codes

        return _Task(
            fmt,
            policy,
            label(policy, presets),
            runs(fmt, policy),
            # Three names say most policies; all that they cannot say are presets.
            encode if policy == Policy(policy.overflow, policy.rounding, policy.nan) else encode_preset,
            self.live.get((fmt.name, policy), []),
            [record for record in recorded() if (record.fmt, record.policy) == (fmt, policy)],
        )

    def _task_rows(self, task: _Task, pool: ThreadPoolExecutor, done: int, total: int) -> Iterator[Row]:
        row = Row(SUITE, THE_LAW, task.fmt.name, task.name)
        self.progress(WHAT, done, total)
        try:
            results = {}
            for result in self._results(task, pool):
                results[result["chunk"]] = result
                self.progress(WHAT, done + len(results), total)
        except NotOffered as error:
            yield Row(row.suite, row.reference, row.format, row.policy, reason=str(error), skipped=True)
            return
        except BadResult as error:
            yield Row(row.suite, row.reference, row.format, row.policy, cases=PIECE, mismatches=PIECE, diagnosis=str(error))
            return
        found = [results[chunk] for chunk in sorted(results)]
        self.seconds[task.fmt.name] += sum(result["seconds"] for result in found) / self.workers
        yield from _rows(task, found)

    def _results(self, task: _Task, pool: ThreadPoolExecutor) -> Iterator[dict[str, Any]]:
        part = f"{task.fmt} {task.policy}"
        kept = {record["chunk"]: record for record in self.state.load(part)}
        for chunk in self.chunks:
            if chunk in kept:
                yield kept[chunk]
        futures: list[Future[dict[str, Any]]] = [pool.submit(_convert, task, chunk) for chunk in self.chunks if chunk not in kept]
        try:
            for future in as_completed(futures):
                result = future.result()
                self.state.append(part, result)
                yield result
        finally:
            for future in futures:
                future.cancel()
            wait(futures)


def _rows(task: _Task, found: list[dict[str, Any]]) -> Iterator[Row]:
    """The rows of a conversion, of all its chunks in order."""
    cases = len(found) * CHUNK

    def row(suite: str, reference: str, key: str, diagnosis: str = "") -> Row:
        tallies = [result["versus"][key] for result in found]
        first = [_difference(task.fmt, *kept) for _, some in tallies for kept in some[:SHOWN]]
        return Row(
            suite,
            reference,
            task.fmt.name,
            task.name,
            cases,
            sum(count for count, _ in tallies),
            first=tuple(first[:SHOWN]),
            diagnosis=diagnosis,
        )

    kept = [bits for result in found for bits, _, _ in result["versus"][THE_LAW][1]]
    law = row(SUITE, THE_LAW, THE_LAW, _diagnosis(task, kept) if kept else "")
    yield law
    for i, record in enumerate(task.records):
        strange = [result["chunk"] for result in found if bytes.fromhex(result["sha256"]) != record.chunks[result["chunk"]]]
        text = f"the law itself has other digests, first that of the numbers 0x{strange[0]:02x}......" if strange else law.diagnosis
        yield row(DIGESTS, record.origin, f"record {i}", text)
    if len(found) == CHUNKS and shipped_for(task.fmt, task.policy) is not None:
        if root_digest(tuple(bytes.fromhex(result["sha256"]) for result in found)) == shipped_for(task.fmt, task.policy):
            yield row(DIGESTS, "shipped SHA-256", THE_LAW, law.diagnosis)
        else:
            text = "the law has changed since the digests were made: fp8np.reference gives other codes"
            yield Row(DIGESTS, "shipped SHA-256", task.fmt.name, task.name, cases, 1, diagnosis=text)
    for title, _ in task.libraries:
        yield row(SUITE, title, title)


def _diagnosis(task: _Task, differing: list[int]) -> str:
    # The differences that were found, among numbers that are all around them.
    crafted = [given.x for given in inputs(task.fmt) if given.x.dtype == np.float32]
    x = np.concatenate([np.array(differing, np.uint32).view(np.float32), *crafted])
    at = np.searchsorted(task.law.starts, x.view(np.uint32).astype(np.int64), side="right") - 1
    try:
        got = task.encode(x)
    except (NotOffered, BadResult):  # it takes whole pieces, but not these
        return ""
    with np.errstate(invalid="ignore"):  # signalling NaN
        return diagnose.encoding(task.fmt, task.policy, x, task.law.codes[at], got)


def _difference(fmt: FloatFormat, bits: int, expected: int, got: int) -> Difference:
    return Difference(number_text(np.uint32(bits).view(np.float32)), code_text(fmt, expected), code_text(fmt, got))
