"""pad: more elements at the ends of the last axes, or fewer.

``pad`` is (before, after) of the last axis, then of the one before it, and so on, as in PyTorch.
In mode constant, negative numbers cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fp8np.dims import Size
from fp8np.errors import GraphError, ShapeError
from fp8np.layers._op import REQUIRED, Foreign, Spec, op
from fp8np.layers._shapes import text
from fp8np.layers._types import checked

_NUMPY = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def shape(x: Spec, *, pad: tuple[Size, ...], mode: str, value: float | None) -> Spec:
    """(..., L) -> (..., before + L + after)"""
    checked("pad", x)
    if mode not in _NUMPY:
        raise GraphError(f"pad: expected mode {', '.join(_NUMPY)}, got {mode!r}")
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ShapeError(f"pad: expected two sizes for each of at most {x.ndim} axes, got {text(pad)}")
    sizes = list(x.shape)
    for i in range(len(pad) // 2):
        size, sides = sizes[-1 - i], (pad[2 * i], pad[2 * i + 1])
        cuts = [-n for n in sides if isinstance(n, int) and n < 0]
        if cuts and (mode != "constant" or (isinstance(size, int) and sum(cuts) > size)):
            raise ShapeError(f"pad: expected to cut at most {size}, and in mode 'constant' only, got {text(pad)} in mode {mode!r}")
        if isinstance(size, int):
            # Reflection needs an element behind the border, the others as many as are repeated.
            limit = {"constant": None, "replicate": None if size else 0, "reflect": size - 1, "circular": size}[mode]
            if limit is not None and any(isinstance(n, int) and n > limit for n in sides):
                raise ShapeError(f"pad: expected at most {limit} on an axis of {size} in mode {mode!r}, got {text(pad)}")
        sizes[-1 - i] = size + sides[0] + sides[1]
    return Spec(tuple(sizes), x.dtype)


def pad_(x: Any, *, pad: tuple[int, ...], mode: str, value: float | None) -> Any:
    """y = x with elements added at (or, where negative, cut from) the ends of the last axes"""
    sides = [(0, 0)] * (x.ndim - len(pad) // 2) + [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    x = x[tuple(slice(max(0, -before), n + min(0, after)) for n, (before, after) in zip(x.shape, sides, strict=True))]
    grow = [(max(0, before), max(0, after)) for before, after in sides]
    if mode == "constant":
        return np.pad(x, grow, constant_values=0 if value is None else value)
    return np.pad(x, grow, mode=_NUMPY[mode])  # type: ignore[call-overload]


op(
    "pad",
    ("x",),
    shape=shape,
    define=pad_,
    attrs={"pad": REQUIRED, "mode": "constant", "value": None},
    torch=(
        Foreign("aten.pad.default", ("x", "pad", "mode", "value")),
        Foreign("aten.constant_pad_nd.default", ("x", "pad", "value")),
        *(Foreign(f"aten.reflection_pad{n}d.default", ("x", "pad"), {"mode": "reflect"}) for n in (1, 2, 3)),
        *(Foreign(f"aten.replication_pad{n}d.default", ("x", "pad"), {"mode": "replicate"}) for n in (1, 2, 3)),
    ),
    onnx=("Pad",),
)
