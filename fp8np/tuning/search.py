"""The strategy: which recipes are tried, in which order.

1. The recipe as it is.
2. Types of ops, as the paper's own tool falls back (its "basic" strategy for FP8): convolutions and linear layers only; if these meet the
   target, every other type beside them, those that pass one after the other until one does not; if not, without the first convolution
   and the last linear.
3. Nodes, those first that cost the model's output most: in other formats, then with finer scales.
4. Nodes in float32, in the same order, as few as do it.

In 3 and 4 the number of nodes doubles until the target is met, and is then halved in to the smallest that meets it: trials are few, where
a trial is a pass over all of the user's data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fp8np.errors import InputError, RecipeError
from fp8np.graph import Graph
from fp8np.ptq.recipe import Recipe, get_recipe
from fp8np.tuning.bench import FP32_KEY, Bench, graph_digest, without_techniques
from fp8np.tuning.change import PRODUCTS, Change, changed, first_and_last
from fp8np.tuning.log import Entry, Log
from fp8np.tuning.options import Options, Settings
from fp8np.tuning.ranking import Damage, Ranking
from fp8np.tuning.target import Target
from fp8np.tuning.trial import Trial

__all__ = ["Search"]

Told = Callable[[Trial], None]


class _SpentError(Exception):
    """The trials are used up."""


class Search:
    """Tries recipes until one meets the target, or the trials are used up.

    Args:
        bench: makes and measures models.
        target: what is to be reached.
        log: what is known already, and where the rest goes.
        trials: how many recipes may be measured, those in the log included: a search that was stopped goes the same way again.
        told: called after each trial, that of FP32 first.

    Attributes:
        baseline: trial 0, the FP32 model.
        trials: all others, in order.
        ranking: what nodes cost, if it was asked.
        spent: whether the search ended because all trials were used up.

    Raises:
        RecipeError: the recipe does not fit, or quantizes nothing. InputError: the metric fails. TuningError: FP32 has nothing to lose.
    """

    def __init__(self, bench: Bench, target: Target, log: Log, trials: int, told: Told | None = None) -> None:
        self._bench = bench
        self._target = target
        self._log = log
        self._limit = trials
        self._told = told
        self._known: dict[str, Trial] = {}
        self._changes: dict[str, Change] = {}
        self.trials: list[Trial] = []
        self.ranking: tuple[Damage, ...] = ()
        self.spent = False
        self._quantized = self._quantized_by(bench.recipe)
        if not self._quantized:
            reasons = dict.fromkeys(decision.reason for decision in bench.decisions(bench.recipe))
            raise RecipeError(f"recipe {bench.recipe.name!r} quantizes no node of this model: {'; '.join(reasons) or 'none can be'}")
        known = FP32_KEY in log.entries
        fp32 = self._entry(FP32_KEY, lambda: bench.prepared, "FP32")
        target.check_baseline(fp32.value)
        self.baseline = self._trial(0, "FP32", get_recipe("fp32"), Change(), FP32_KEY, fp32, logged=known)

    @property
    def best(self) -> Trial:
        """The best trial so far."""
        return min(self.trials, key=lambda trial: trial.rank)

    def digest(self, trial: Trial) -> str:
        """Of the graph of a trial."""
        return self._log.entries[trial.key].graph

    def run(self) -> None:
        """Goes through the strategy."""
        try:
            if not self._attempt(Change(), "the recipe as it is").met:
                self._types_of_ops()
            if not self.best.met:
                self._nodes()
        except _SpentError:
            self.spent = True

    def _types_of_ops(self) -> None:
        ops = dict.fromkeys(node.op for node in self._bench.prepared.nodes if node.name in self._quantized)
        others = [op for op in ops if op not in PRODUCTS]
        if len(others) == len(ops):
            return
        if self._with_ops(others, []).met:
            alone = {op: self._with_ops(others, [op]) for op in others}
            passed = sorted((op for op in others if alone[op].met), key=lambda op: alone[op].loss)
            for count in range(2, len(passed) + 1):
                if not self._with_ops(others, passed[:count]).met:
                    break
            return
        change = Change(without=frozenset(others), first_last=True)
        if list(first_and_last(self._bench.prepared)) and self._quantized_by(changed(self._bench.prepared, self._bench.recipe, change)):
            self._attempt(change, "convolutions and linear layers but the first and last")

    def _with_ops(self, others: Sequence[str], some: Sequence[str]) -> Trial:
        what = ", ".join(("convolutions and linear layers", *some)) + " only"
        return self._attempt(Change(without=frozenset(others).difference(some)), what)

    def _nodes(self) -> None:
        ranking = Ranking(self._bench)
        plain = without_techniques(self._bench.recipe)
        self.ranking = ranking.ranked(self._bench.decisions(plain))
        names = [damage.node for damage in self.ranking]
        options = Options(self._bench, ranking, names)
        formats = {name: settings for name in names if (settings := options.formats(name)) is not None}
        if self._changed_formats(formats, {}, "in other formats"):
            return
        finer = {name: settings for name in names if (settings := options.finer(name)) is not None}
        # On from the model in 8 bits that lost least.
        if self._changed_formats(finer, self._best_in_8_bits().formats, "with finer scales"):
            return
        start = self._best_in_8_bits()
        again = ranking.ranked(self._bench.decisions(changed(self._bench.prepared, plain, start)))
        self._in_float32(start, [damage.node for damage in again], formats)

    def _best_in_8_bits(self) -> Change:
        return self._changes[min((trial for trial in self.trials if not trial.floats), key=lambda trial: trial.rank).key]

    def _changed_formats(self, choices: Mapping[str, Settings], others: Mapping[str, Settings], what: str) -> bool:
        names = list(choices)

        def attempt(count: int) -> Trial:
            said = {**others, **{name: choices[name] for name in names[:count]}}
            return self._attempt(Change(formats=said), f"{_counted(count)} {what}")

        return _fewest(len(names), attempt) is not None

    def _in_float32(self, start: Change, names: Sequence[str], formats: Mapping[str, Settings]) -> None:
        def attempt(kept: Sequence[str], change: Change = start, more: str = "") -> Trial:
            return self._attempt(replace(change, keep=tuple(kept)), f"{_counted(len(kept))} in float32{more}")

        # Of a model with no node left nothing would be quantized.
        count = _fewest(len(names) - 1, lambda count: attempt(names[:count]))
        if count is None:
            return
        kept = list(names[:count])
        # Those that cost more are not always those that matter.
        for name in reversed(names[: count - 1]):
            fewer = [other for other in kept if other != name]
            if attempt(fewer).met:
                kept = fewer
        # Beside these, other formats may be needed for few nodes or none.
        others = [name for name in formats if name not in kept]
        if not attempt(kept, Change(), ", all others as they are").met:
            _fewest(
                len(others),
                lambda count: attempt(kept, Change(formats={n: formats[n] for n in others[:count]}), f", {count} in other formats"),
            )

    def _attempt(self, change: Change, what: str) -> Trial:
        recipe = changed(self._bench.prepared, self._bench.recipe, change)
        key = self._bench.key(recipe)
        if key not in self._known:
            if len(self.trials) >= self._limit:
                raise _SpentError
            number = len(self.trials) + 1
            known = key in self._log.entries
            entry = self._entry(key, lambda: self._bench.quantized(recipe), f"trial {number}, {what}")
            self._known[key] = trial = self._trial(number, what, recipe, change, key, entry, logged=known)
            self._changes[key] = change
            self.trials.append(trial)
        return self._known[key]

    def _entry(self, key: str, make: Callable[[], Graph], what: str) -> Entry:
        if key not in self._log.entries:
            start = time.perf_counter()
            graph = make()
            try:
                value = self._bench.value(graph)
            except InputError as error:
                raise InputError(f"{what}: {error}") from error
            self._log.add(key, Entry(value, graph_digest(graph), time.perf_counter() - start), what)
        return self._log.entries[key]

    def _trial(self, number: int, what: str, recipe: Recipe, change: Change, key: str, entry: Entry, *, logged: bool) -> Trial:
        loss = self._target.loss(self.baseline.value if number else entry.value, entry.value)
        floats = len(self._quantized - self._quantized_by(recipe))
        changes = sum(len(settings) for name, settings in change.formats.items() if name not in change.keep)
        trial = Trial(number, what, recipe, key, entry.value, loss, self._target.met(loss), floats, changes, entry.seconds, logged)
        if self._told is not None:
            self._told(trial)
        return trial

    def _quantized_by(self, recipe: Recipe) -> frozenset[str]:
        return frozenset(decision.node for decision in self._bench.decisions(recipe) if decision.schemes)


def _fewest(most: int, attempt: Callable[[int], Trial]) -> int | None:
    """The smallest count from 1 to `most` whose trial meets the target, where more never hurts; None where `most` does not."""
    low, high = 0, 1
    while high < most and not attempt(high).met:
        low, high = high, 2 * high
    high = min(high, most)
    if most < 1 or not attempt(high).met:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if attempt(middle).met else (middle, high)
    return high


def _counted(nodes: int) -> str:
    return "1 node" if nodes == 1 else f"{nodes} nodes"
