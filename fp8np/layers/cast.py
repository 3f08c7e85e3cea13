"""cast: the same numbers in another element type; identity: the same tensor."""

from __future__ import annotations

from typing import Any

from fp8np.errors import DTypeError, GraphError
from fp8np.layers._op import Foreign, Spec, op
from fp8np.layers._types import TYPES, as_type, checked, typed


def cast_shape(x: Spec, like: Spec | None = None, *, dtype: str | None) -> Spec:
    """Any shape -> the same, of type dtype, or that of like, or unchanged"""
    checked("cast", x, kinds=(*TYPES, "int8", "int16"))
    if like is not None and dtype is not None:
        raise GraphError(f"cast: expected one of like and dtype, got {like} and {dtype}")
    result = dtype or (x if like is None else like).dtype
    if result not in TYPES:
        raise DTypeError(f"cast: expected a type of {', '.join(TYPES)}, got {result}")
    return Spec(x.shape, result)


def cast(x: Any, like: Any = None, *, dtype: str | None) -> Any:
    """y = x in another element type; fractions are cut towards zero"""
    if like is not None:
        dtype = "float32" if like.dtype.kind == "f" else like.dtype.name
    return x if dtype is None else as_type(x, dtype)


op(
    "cast",
    ("x", "like?"),
    shape=cast_shape,
    define=cast,
    attrs={"dtype": None},
    torch=(
        *(Foreign(f"aten.{name}", ("x", "dtype"), convert=typed) for name in ("to.dtype", "to.dtype_layout", "_to_copy.default")),
        Foreign("aten.to.device", ("x", "", "dtype"), convert=typed),
        *(Foreign(f"aten.{name}", ("x", "like")) for name in ("to.other", "type_as.default")),
    ),
    onnx=("Cast",),
)


def identity_shape(x: Spec) -> Spec:
    """Any shape -> the same"""
    return x


def identity(x: Any) -> Any:
    """y = x"""
    return x


def _evaluating(args: dict[str, Any]) -> dict[str, Any]:
    if args.pop("train", False) and args.get("p", 0) != 0:
        raise ValueError("dropout in training mode: call model.eval() before the export")
    args.pop("p", None)
    return args


op(
    "identity",
    ("x",),
    shape=identity_shape,
    define=identity,
    torch=(
        *(
            Foreign(f"aten.{name}.default", ("x",))
            for name in (
                "contiguous",
                "clone",
                "detach",
                "alias",
                "lift_fresh_copy",
                "lift_fresh",
                "positive",
                "resolve_conj",
                "resolve_neg",
            )
        ),
        *(
            Foreign(f"aten.{name}.default", ("x", "p", "train"), convert=_evaluating)
            for name in ("dropout", "alpha_dropout", "feature_dropout")
        ),
    ),
    onnx=("Identity", "Dropout"),
)
