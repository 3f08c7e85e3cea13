"""In which other formats, and with how much finer scales, a node could stay in 8 bits; the best by what its own output loses."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from fp8np.formats import FloatFormat
from fp8np.graph import Node
from fp8np.ptq.assign import Decision, needs
from fp8np.ptq.recipe import RECIPES, paper_name
from fp8np.scheme import PerTensor, Scheme
from fp8np.tuning.bench import Bench, without_techniques
from fp8np.tuning.change import Change, changed
from fp8np.tuning.ranking import Ranking

__all__ = ["Options"]

Settings = Mapping[str, str]

_FORMATS = tuple(dict.fromkeys(f for recipe in RECIPES.values() for f in recipe.candidates))
_WORTH = 0.5
"""Decibels by which other formats have to be better."""
_HARM = 3.0
"""Decibels by which finer scales may be worse: of few large numbers, rounded in two ways, chance says as much."""
_GROUP = "group 32"
_WITH_TOKENS = ("linear", "matmul", "addmm")


class Options:
    """Choices for the nodes of a bench's model; each is measured when it is first asked for.

    Args:
        bench: the model.
        ranking: that measures.
        nodes: names of the nodes that may be asked about.
    """

    def __init__(self, bench: Bench, ranking: Ranking, nodes: Sequence[str]) -> None:
        self._bench = bench
        self._ranking = ranking
        self._base = without_techniques(bench.recipe)
        self._now = {d.node: d for d in bench.decisions(self._base)}
        self._nodes = {node.name: node for node in bench.prepared.nodes}
        self._formats: dict[str, Settings | None] = {}
        self._finer: dict[str, Settings | None] = {}
        self._made: dict[tuple[str, tuple[tuple[str, str], ...]], Decision] = {}
        # The ranges of all choices in one pass over the data.
        choices = [self._decision(name, settings) for name in nodes for settings in self._other_formats(name)]
        bench.calibrate(need for decision in choices for need in needs(bench.prepared, (decision,)))

    def formats(self, name: str) -> Settings | None:
        """What an override says to hold a node in the best other formats; None where none is better."""
        if name not in self._formats:
            self._formats[name] = self._best(name, self._other_formats(name), self._ranking.own(self._now[name]) + _WORTH)
        return self._formats[name]

    def finer(self, name: str) -> Settings | None:
        """The same with finer scales too, the finest that do no harm; None where there are none."""
        if name not in self._finer:
            formats = self.formats(name) or self._as_it_is(name)
            self._finer[name] = None if formats is None else self._finest(name, formats)
        return self._finer[name]

    def _finest(self, name: str, formats: Settings) -> Settings | None:
        now = self._decision(name, formats)
        apart = [{**formats, **step} for step in self._steps(name)]
        apart = [settings for settings in apart if self._decision(name, settings).schemes != now.schemes]
        together = {key: value for settings in apart for key, value in settings.items()}
        # A sum of squares does not see small numbers beside large ones, which is what finer scales are for: they need not gain by it.
        least = self._ranking.own(now) - _HARM
        choices = [together, *apart] if len(apart) > 1 else apart
        return next((s for s in choices if self._ranking.own(self._decision(name, s)) >= least), None)

    def _best(self, name: str, choices: Iterable[Settings], least: float) -> Settings | None:
        best = None
        for settings in choices:
            sqnr = self._ranking.own(self._decision(name, settings))
            if sqnr >= least:
                best, least = settings, sqnr
        return best

    def _decision(self, name: str, settings: Settings) -> Decision:
        key = name, tuple(sorted(settings.items()))
        if key not in self._made:
            recipe = changed(self._bench.prepared, self._base, Change(formats={name: settings}))
            self._made[key] = next(d for d in self._bench.decisions(recipe) if d.node == name)
        return self._made[key]

    def _other_formats(self, name: str) -> Iterator[Settings]:
        """Each pair of formats, with scales where the node has none."""
        weights, activations = _operands(self._bench, self._nodes[name], self._now[name])
        scaled: dict[str, str] = {}
        if any(scheme.direct for scheme in (*weights, *activations)):
            scaled["approach"] = "dynamic" if self._bench.calibration is None else "static"
        both = itertools.product(_FORMATS, _FORMATS) if weights and activations else ((f, f) for f in _FORMATS)
        for weight, activation in both:
            # Said of activations too where a node has none: integers meet integers only.
            quantized = {} if self._bench.recipe.activations is None else {"activations": paper_name(activation)}
            yield {"weights": paper_name(weight), **quantized, **scaled}

    def _as_it_is(self, name: str) -> Settings | None:
        """The formats that a node has, as an override says them; None where they are not floats."""
        weights, activations = _operands(self._bench, self._nodes[name], self._now[name])
        formats = [scheme.format for scheme in (*weights, *activations)]
        if not all(isinstance(fmt, FloatFormat) for fmt in formats) or any(scheme.direct for scheme in (*weights, *activations)):
            return None
        read = {"activations": paper_name(formats[-1])} if activations else {}
        return {"weights": paper_name(formats[0]), **read}

    def _steps(self, name: str) -> Iterator[Settings]:
        """To finer scales, of weights and of activations."""
        weights, activations = _operands(self._bench, self._nodes[name], self._now[name])
        if weights:
            one = all(isinstance(scheme.granularity, PerTensor) and not scheme.direct for scheme in weights)
            yield {"weight_granularity": "channel" if one else _GROUP}
        if self._nodes[name].op in _WITH_TOKENS and activations:
            yield {"approach": "dynamic", "activation_granularity": "token"}


def _operands(bench: Bench, node: Node, decision: Decision) -> tuple[list[Scheme], list[Scheme]]:
    """The schemes of its weights, and of its activations."""
    weights: list[Scheme] = []
    activations: list[Scheme] = []
    for i, scheme in decision.schemes.items():
        (weights if node.inputs[i] in bench.prepared.constants else activations).append(scheme)
    return weights, activations
