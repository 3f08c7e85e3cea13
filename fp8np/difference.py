"""Two artifacts on the same data: the first node where they part, by how much, how it grows, and what is built otherwise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fp8np.check import DTYPES
from fp8np.data import Batches, Progress
from fp8np.errors import InputError
from fp8np.graph import Graph, Node, named_leaves
from fp8np.inputs import signature
from fp8np.inspection.measure import cut, pieces
from fp8np.inspection.operands import Operand, operands, quantizers
from fp8np.inspection.pairs import Agreement, Pairs, paired
from fp8np.layers._op import OPS
from fp8np.metrics import plain
from fp8np.model import Model
from fp8np.scaling import dequantize
from fp8np.tensor import QTensor
from fp8np.watch import Watch

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Difference", "Gap", "compare", "difference_table"]

# Rows of the table, which shows where a difference grows; all of them are in the JSON.
_ROWS = 16


@dataclass(frozen=True)
class Gap:
    """How far a value of one artifact is from that of the other.

    Attributes:
        name: of the node, or of the output.
        op: of the node; "" for an output.
        largest: the largest difference of two elements.
        relative: the same in parts of the largest magnitude that the second artifact has there.
        sqnr: 10 log10(sum of squares of the second / sum of squared differences), in dB.
        structure: what is built otherwise in this node: op, attributes, formats, constants.
    """

    name: str
    op: str
    largest: float
    relative: float
    sqnr: float
    structure: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """What sets two artifacts apart.

    Attributes:
        equal: whether nothing differs by more than the tolerance; a difference in structure alone is none.
        tolerance: in parts of the largest magnitude of the second artifact's value.
        samples: of the data, on how many both were run.
        first: the first node, in the order of the first graph, whose outputs differ by more.
        nodes: all nodes that both have and whose outputs can be compared, in that order.
        outputs: of the models.
        only_first, only_second: nodes that only one of them has; those that make codes are left out.
    """

    equal: bool
    tolerance: float
    samples: int
    first: Gap | None
    nodes: tuple[Gap, ...]
    outputs: tuple[Gap, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON. What is not finite becomes "inf", "-inf" or "nan"."""

        def gap(g: Gap) -> dict[str, Any]:
            return {**dataclasses.asdict(g), "largest": plain(g.largest), "relative": plain(g.relative), "sqnr": plain(g.sqnr)}

        return {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "first": None if self.first is None else gap(self.first),
            "nodes": [gap(g) for g in self.nodes],
            "outputs": [gap(g) for g in self.outputs],
            "only_first": list(self.only_first),
            "only_second": list(self.only_second),
        }


def compare(
    a: Model, b: Model, data: Batches, *, tolerance: float = 0.0, samples: int = 16, progress: Progress | None = None
) -> Difference:
    """Runs two artifacts on the same data and compares every node that both have.

    Args:
        a: the first artifact.
        b: the second; errors are relative to its values.
        data: what both are run on.
        tolerance: differences up to this part of the largest magnitude are none.
        samples: of the data, at least how many; whole batches.
        progress: told about each piece.

    Raises:
        InputError: the artifacts take other inputs, the tolerance is no finite number from 0 on, or a model refused the data.
    """
    if a.inputs != b.inputs:
        raise InputError(f"diff: the artifacts take different inputs: {signature(a.inputs)}; and {signature(b.inputs)}")
    if not 0 <= tolerance < math.inf:
        raise InputError(f"diff: expected a finite tolerance from 0 on, got {tolerance}")
    pairs = paired(a.graph, b.graph)
    compared = [(x, y) for x, y in pairs.same if _readable(a.graph, x) and _readable(b.graph, y)]
    ours, theirs = dict(named_leaves(a.graph.outputs)), dict(named_leaves(b.graph.outputs))
    shared = [path for path in ours if path in theirs]
    watch_a = Watch(a.graph, [*(x.outputs[0] for x, _ in compared)])
    watch_b = Watch(b.graph, [*(y.outputs[0] for _, y in compared)])
    nodes = {x.name: Agreement() for x, _ in compared}
    outputs = {path: Agreement() for path in shared}
    batches = pieces(data, samples)
    parts = [part for batch in batches for part in cut(a.graph, batch)]
    for i, part in enumerate(parts):
        first, second = watch_a(part.inputs), watch_b(part.inputs)
        for x, y in compared:
            nodes[x.name].add(first[x.outputs[0]], second[y.outputs[0]])
        # By themselves, as they are when nobody watches.
        got, wanted = dict(named_leaves(a.run(part.inputs))), dict(named_leaves(b.run(part.inputs)))
        for path in shared:
            if got[path].shape == wanted[path].shape:
                outputs[path].add(got[path], wanted[path])
        if progress is not None:
            progress("comparing", i + 1, len(parts))
    structure = dict(_structure(a.graph, b.graph, pairs))
    gaps = tuple(_gap(x.name, x.op, nodes[x.name], structure.get(x.name, ())) for x, _ in compared)
    ends = tuple(_gap(path, "", agreement) for path, agreement in outputs.items() if agreement.elements)
    first_gap = next((gap for gap in gaps if gap.relative > tolerance), None)
    return Difference(
        equal=first_gap is None and all(gap.relative <= tolerance for gap in ends) and len(ends) == len(ours) == len(theirs),
        tolerance=tolerance,
        samples=sum(batch.samples for batch in batches),
        first=first_gap,
        nodes=gaps,
        outputs=ends,
        only_first=tuple(node.name for node in pairs.first),
        only_second=tuple(node.name for node in pairs.second),
    )


def _readable(graph: Graph, node: Node) -> bool:
    return graph.values[node.outputs[0]].dtype in DTYPES


def _gap(name: str, op: str, agreement: Agreement, structure: tuple[str, ...] = ()) -> Gap:
    return Gap(name, op, agreement.largest, agreement.relative, agreement.sqnr, structure)


# -- what is built otherwise ------------------------------------------------------------------------------------------


def _structure(a: Graph, b: Graph, pairs: Pairs) -> Iterator[tuple[str, tuple[str, ...]]]:
    made_a, made_b = quantizers(a), quantizers(b)
    for x, y in pairs.same:
        found = [] if x.op == y.op else [f"op: {x.op} against {y.op}"]
        if x.op == y.op:
            found += _attributes(x, y)
        first, second = ({o.role: o for o in operands(g, n, made)} for g, n, made in ((a, x, made_a), (b, y, made_b)))
        for role in dict.fromkeys((*first, *second)):
            one, other = _described(a, made_a, first.get(role)), _described(b, made_b, second.get(role))
            if one != other:
                found.append(f"{role}: {one} against {other}")
        found += _constants(a, b, x, y, {*first, *second})
        if found:
            yield x.name, tuple(found)


def _attributes(x: Node, y: Node) -> list[str]:
    row = OPS[x.op]
    one, other = row.filled(x.attrs), row.filled(y.attrs)
    return [f"{name}: {one[name]} against {other[name]}" for name in one if one[name] != other[name]]


def _described(graph: Graph, made: Mapping[str, Node], operand: Operand | None) -> str:
    if operand is None:
        return "float32"
    scale = made[operand.name].attrs.get("scale") if operand.name in made else None
    return f"{operand.format} {operand.scaling}" + ("" if scale is None else f" {scale:.6g}")


def _constants(a: Graph, b: Graph, x: Node, y: Node, said: set[str]) -> Iterator[str]:
    first, second = (_by_role(g, n) for g, n in ((a, x), (b, y)))
    for role in first.keys() & second.keys():
        one, other = first[role], second[role]
        if one.shape != other.shape:
            yield f"{role}: shape {list(one.shape)} against {list(other.shape)}"
        elif role not in said and not np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
            largest = np.abs(one.astype(np.float64) - other.astype(np.float64)).max()
            yield f"{role}: numbers differ by up to {largest:.3g}"


def _by_role(graph: Graph, node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i, name in enumerate(node.inputs):
        constant = graph.constants.get(str(name))
        if constant is not None:
            found.setdefault(OPS[node.op].input_name(i), dequantize(constant) if isinstance(constant, QTensor) else constant)
    return found


# -- as text ----------------------------------------------------------------------------------------------------------


def difference_table(difference: Difference) -> RenderableType:
    """To be printed by rich: the verdict, the first node, where the difference grows, the outputs."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("node", overflow="fold", min_width=12)
    table.add_column("op", no_wrap=True)
    for heading in ("largest\ndifference", "\nrelative", "SQNR\ndB"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("built otherwise")
    for gap in _chosen(difference):
        table.add_row(escape(gap.name), gap.op, *_figures(gap), escape("; ".join(gap.structure)))
    table.add_section()
    for gap in difference.outputs:
        table.add_row(escape(f"output {gap.name}"), "", *_figures(gap), "")
    lines: list[RenderableType] = [escape(line) for line in _lines(difference)]
    return Group(*lines, table)


def _lines(difference: Difference) -> Iterator[str]:
    within = f" to within {difference.tolerance:g} of the largest magnitude" if difference.tolerance else ""
    first = difference.first
    if difference.equal:
        yield f"equal{within}: {len(difference.nodes)} nodes and the outputs, on {difference.samples} samples"
    elif first is None:
        yield f"the nodes that both have are equal{within}, on {difference.samples} samples, but the outputs are not"
    else:
        place = next(i for i, gap in enumerate(difference.nodes) if gap is first)
        before = "nothing that both have comes before it" if not place else f"the {place} nodes before it that both have are equal{within}"
        yield f"they part at {first.name} ({first.op}), on {difference.samples} samples; {before}"
    for which, names in (("first", difference.only_first), ("second", difference.only_second)):
        if names:
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            yield f"only in the {which}: {shown}"


def _chosen(difference: Difference) -> list[Gap]:
    """The first node that differs, and those where the relative error is larger than anywhere before: where it grows."""
    if difference.first is None:
        return []
    start = next(i for i, gap in enumerate(difference.nodes) if gap is difference.first)
    growing: list[Gap] = []
    lowest = math.inf
    for gap in difference.nodes[start:]:
        if gap.sqnr < lowest or not growing:
            growing.append(gap)
            lowest = min(lowest, gap.sqnr)
    if len(growing) <= _ROWS:
        return growing
    kept = {round(i * (len(growing) - 1) / (_ROWS - 1)) for i in range(_ROWS)}
    return [gap for i, gap in enumerate(growing) if i in kept]


def _figures(gap: Gap) -> tuple[str, str, str]:
    return f"{gap.largest:.3g}", f"{gap.relative:.3g}", "equal" if gap.largest == 0 else f"{gap.sqnr:.1f}"
