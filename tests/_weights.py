"""Arrays and geometries that the tests of ops with weights share."""

from __future__ import annotations

from typing import Any

import numpy as np


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def indices(*shape: int) -> Any:
    return np.random.default_rng(shape).integers(0, 7, shape)


def recurrent_weights(gates: int, inputs: int, hidden: int, layers: int, directions: int, bias: bool) -> list[Any]:
    weights = []
    for cell in range(layers * directions):
        size = inputs if cell < directions else hidden * directions
        weights += [normal(gates * hidden, size, seed=cell) / 2, normal(gates * hidden, hidden, seed=cell) / 2]
        weights += [normal(gates * hidden, seed=cell + s) for s in (10, 20)] if bias else []
    return weights


# shapes of x and weight; stride, padding, dilation; groups
CONV = [
    ((2, 3, 9, 8), (4, 3, 3, 3), [1, 1], [0, 0], [1, 1], 1),
    ((2, 3, 9, 8), (4, 3, 3, 2), [2, 3], [1, 2], [2, 1], 1),
    ((1, 6, 7, 7), (4, 3, 3, 3), [2, 1], [1, 0], [1, 2], 2),
    ((2, 4, 9, 8), (4, 1, 3, 3), [2, 2], [1, 1], [1, 1], 4),
    ((2, 4, 9, 8), (8, 1, 3, 5), [1, 2], [1, 2], [2, 1], 4),
    ((2, 5, 6, 5), (3, 5, 1, 1), [1, 1], [0, 0], [1, 1], 1),
    ((1, 1, 6, 6), (3, 1, 6, 6), [1, 1], [0, 0], [1, 1], 1),
    ((3, 5, 4), (2, 3, 3, 2), [1, 1], [1, 1], [1, 1], 1),
    ((0, 3, 5, 5), (2, 3, 3, 3), [1, 1], [1, 1], [1, 1], 1),
]

# shapes of x and weight; stride, padding, output_padding; groups; dilation
CONV_TRANSPOSE = [
    ((2, 3, 5, 4), (3, 4, 3, 3), [1, 1], [0, 0], [0, 0], 1, [1, 1]),
    ((2, 3, 5, 4), (3, 4, 3, 2), [2, 3], [1, 2], [1, 2], 1, [2, 1]),
    ((1, 6, 4, 4), (6, 2, 4, 4), [2, 2], [1, 1], [0, 0], 3, [1, 1]),
    ((2, 4, 4, 5), (4, 1, 3, 3), [2, 1], [0, 1], [1, 0], 4, [1, 2]),
    ((3, 5, 4), (3, 2, 1, 2), [3, 3], [0, 0], [2, 1], 1, [1, 1]),
]
