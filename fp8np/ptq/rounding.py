"""Rounding weights so that layers err least, after AdaRound (arXiv 2004.10568) and GPTQ (arXiv 2210.17323).

To the nearest, each weight errs least; a layer errs least where the errors of its weights cancel out on the inputs that it gets. With x
the inputs of the quantized model, (K, rows), the codes shall minimise

    |(w - w') x|²  =  (w - w') H (w - w')^T,      H = x x^T + λ I

Weights are rounded one input after the other; what each loses is carried over to those that follow, by the inverse of H: its Cholesky
factor holds all steps at once.

Tried and left out: fitting w' x to the outputs of the float32 model, which would make up for the rounding of activations, too. Least
squares against noisy inputs shrink weights; through 50 layers of EfficientNet-Lite0 nothing was left of the signal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fp8np.calibrate import Need, Range
from fp8np.codec import decode, encode
from fp8np.data import Batches, Progress, limited
from fp8np.formats import FloatFormat
from fp8np.graph import Graph
from fp8np.ptq._matrix import Layer, layer_of
from fp8np.ptq.assign import Decision
from fp8np.ptq.codes import quantized_weight
from fp8np.ptq.insert import insert, rounded_activation
from fp8np.scheme import Scheme
from fp8np.tensor import QTensor
from fp8np.watch import Watch

__all__ = ["adapted_weights", "carried_over", "rounded_to_fit"]

_ROWS = 8192
"""Of a layer's inputs, in all."""

_STAGES = 8
"""How often the quantized model runs anew, with the weights found so far, to give the next layers their inputs."""

_DAMPING = 0.01
"""λ as a share of the mean of H's diagonal: inputs that are rare in the data must not be trusted to cancel anything."""


def adapted_weights(
    graph: Graph,
    decisions: Sequence[Decision],
    ranges: Mapping[Need, Range],
    data: Batches,
    *,
    weight_calibrator: str = "max",
    samples: int | None = None,
    progress: Progress | None = None,
) -> dict[tuple[str, Scheme], QTensor]:
    """Weights of the convolutions, linear layers and products, rounded to fit the data; others are left to the nearest.

    Args:
        graph: the float32 graph.
        decisions: what becomes of its nodes.
        ranges: of its activations.
        data: batches.
        weight_calibrator: how the scales of weights are found.
        samples: so many are used; None: all.
        progress: told about each batch.

    Returns:
        For `fp8np.ptq.insert.insert`.
    """
    schemes = {decision.node: decision.schemes for decision in decisions}
    readers = graph.consumers()
    layers = [layer for node in graph.nodes if (layer := layer_of(graph, node)) is not None and _suits(layer, schemes, readers)]
    found: dict[tuple[str, Scheme], QTensor] = {}
    for stage in range(_STAGES):
        part = layers[stage * len(layers) // _STAGES : (stage + 1) * len(layers) // _STAGES]
        if not part:
            continue
        quantized = insert(graph, decisions, ranges, weight_calibrator=weight_calibrator, weights=found)
        watch = Watch(quantized, dict.fromkeys(layer.x for layer in part))
        squares: dict[str, Any] = {layer.node.name: 0.0 for layer in part}
        for batch in limited(data, samples, f"fitting weights, {stage + 1} of {_STAGES}", progress):
            got = watch(batch.inputs)
            total = max(batch.samples, samples or _total(data, batch.samples))
            limit = max(64, _ROWS * batch.samples // total)
            for layer in part:
                scheme = schemes[layer.node.name].get(layer.x_position)
                x = got[layer.x] if scheme is None else rounded_activation(got[layer.x], layer.x, scheme, ranges)
                rows = layer.rows(x, graph.constants[layer.weight].shape, limit)
                squares[layer.node.name] = squares[layer.node.name] + rows.transpose(0, 2, 1) @ rows
        for layer in part:
            scheme = schemes[layer.node.name][layer.weight_position]
            weight = graph.constants[layer.weight]
            found[layer.weight, scheme] = rounded_to_fit(layer, weight, scheme, squares[layer.node.name], weight_calibrator)
    return found


def _suits(layer: Layer, schemes: Mapping[str, Mapping[int, Scheme]], readers: Mapping[str, Sequence[Any]]) -> bool:
    # A weight that others read too cannot fit the data of one.
    scheme = schemes.get(layer.node.name, {}).get(layer.weight_position)
    return scheme is not None and isinstance(scheme.format, FloatFormat) and len(readers[layer.weight]) == 1


def _total(data: Batches, each: int) -> int:
    return each * (data.count or 16)


def rounded_to_fit(layer: Layer, weight: Any, scheme: Scheme, squares: Any, weight_calibrator: str = "max") -> QTensor:
    """A weight as codes that minimise the error of its layer.

    Args:
        layer: that it belongs to.
        weight: float32.
        scheme: how it is quantized; its scales are those of rounding to the nearest.
        squares: x x^T of the layer's inputs, (G, K, K).
        weight_calibrator: how scales are found.

    Returns:
        Codes with an error on x that is at most that of rounding to the nearest.
    """
    nearest = quantized_weight(weight, scheme, weight_calibrator)
    fmt, scales = nearest.format, layer.scales(nearest).astype(np.float64)
    k = squares.shape[-1]
    mean = np.trace(squares, axis1=1, axis2=2) / k
    h = squares.astype(np.float64) + np.where(mean > 0, _DAMPING * mean, 1.0)[:, None, None] * np.eye(k)
    target = layer.matrix(np.asarray(weight, np.float64))
    codes = _carried(target, scales, h, fmt)
    plain = layer.matrix(nearest.codes)
    # The nearest may be better for some channels: it is compared with, and the better one kept for each.
    worse = _cost(codes, target, scales, h, fmt) > _cost(plain, target, scales, h, fmt)
    chosen = np.where(worse[..., None], plain, codes)
    return QTensor(np.ascontiguousarray(layer.weight_like(chosen, nearest.shape)), fmt, nearest.scale, block=nearest.block)


def _carried(target: npt.NDArray[Any], scales: npt.NDArray[Any], h: npt.NDArray[Any], fmt: FloatFormat) -> npt.NDArray[np.uint8]:
    """Codes (G, O, K): each input's weights are rounded, and their errors carried over to the inputs after it."""
    # With H^-1 = U^T U, U upper triangular, row j of U tells what an error at j is made up with, all before j being fixed.
    upper = np.linalg.cholesky(np.linalg.inv(h)).transpose(0, 2, 1)
    rest = target.copy()
    codes = np.empty(target.shape, np.uint8)
    for start in range(0, target.shape[2], _BLOCK):
        end = min(start + _BLOCK, target.shape[2])
        errors = np.empty((*target.shape[:2], end - start))
        for j in range(start, end):
            codes[..., j] = encode(rest[..., j] / scales[..., j], fmt)
            value = np.asarray(decode(codes[..., j], fmt, dtype=np.float64)) * scales[..., j]
            error = (rest[..., j] - value) / upper[:, j, j, None]
            rest[..., j + 1 : end] -= error[..., None] * upper[:, None, j, j + 1 : end]
            errors[..., j - start] = error
        rest[..., end:] -= errors @ upper[:, start:end, end:]
    return codes


_BLOCK = 64
"""Inputs whose errors reach the others all at once, in one matrix product."""


def _cost(codes: Any, target: Any, scales: Any, h: Any, fmt: FloatFormat) -> Any:
    """|(w - w') x|² of each output channel: (G, O)."""
    error = np.asarray(decode(codes, fmt, dtype=np.float64)) * scales - target
    return ((error @ h) * error).sum(axis=-1)


def carried_over(weights: Mapping[tuple[str, Scheme], QTensor], before: Graph, after: Graph) -> dict[tuple[str, Scheme], QTensor]:
    """Weights quantized for one graph, for another in which the output channels of layers are larger or smaller by factors.

    BatchNorm is such a factor, in whose place re-calibration puts another: codes stay as they are, scales are multiplied. So a weight with
    one scale, or none, gets one for each channel.

    Args:
        weights: of `before`.
        before: a graph.
        after: one with constants of the same names; what is no multiple is left out.
    """
    found: dict[tuple[str, Scheme], QTensor] = {}
    for (name, scheme), codes in weights.items():
        if not (name in before.constants and name in after.constants):
            continue
        if np.array_equal(np.asarray(before.constants[name]), np.asarray(after.constants[name])):
            found[name, scheme] = codes
            continue
        old, new = (np.asarray(graph.constants[name], np.float64).reshape(codes.shape[0], -1) for graph in (before, after))
        energy = (old * old).sum(axis=1)
        factor = np.divide((old * new).sum(axis=1), energy, out=np.zeros_like(energy), where=energy > 0)
        close = np.abs(new - factor[:, None] * old).max(axis=1) <= 1e-4 * np.abs(new).max(axis=1)
        if not (close.all() and (factor != 0).all() and (codes.block is None or codes.block[0] == 1)):
            continue
        along = factor.reshape(-1, *(1,) * (codes.ndim - 1))
        values = np.asarray(decode(codes.codes, codes.format)) * np.sign(along)
        scale = np.asarray(codes.scale * np.abs(along), np.float32)
        found[name, scheme] = QTensor(encode(values, codes.format), codes.format, scale, block=codes.block)
    return found
