"""Shape rules of ops with weights, products, norms and attention: what they refuse, and what they say."""

from __future__ import annotations

from typing import Any

import pytest

from fp8np.errors import DTypeError, ShapeError
from fp8np.layers._op import OPS, Spec


def f32(*shape: int) -> Spec:
    return Spec(shape)


WRONG: list[tuple[str, tuple[Spec | None, ...], dict[str, Any], str]] = [
    ("conv2d", (f32(2, 3, 8, 8), f32(4, 2, 3, 3)), {}, r"conv2d: expected x \(\.\.\., C, H, W\) and weight \(O, C/1, kh, kw\); got x"),
    ("conv2d", (f32(2, 3, 8, 8), f32(4, 3, 3, 3), f32(3)), {}, r"conv2d: expected bias \(4\); got bias float32\[3\]"),
    ("conv2d", (f32(2, 3, 2, 8), f32(4, 3, 3, 3)), {}, "conv2d: expected a padded x at least as large as the kernel"),
    ("conv2d", (f32(2, 3, 8, 8), f32(4, 3, 3, 3)), {"stride": (0, 1)}, r"conv2d: expected positive stride; got stride \(0, 1\)"),
    ("conv2d", (f32(2, 3, 8, 8), f32(4, 3, 3, 3)), {"stride": (1,)}, "conv2d: expected 2 strides and dilations"),
    ("conv2d", (f32(2, 3, 8, 8), f32(4, 3, 3, 3)), {"padding": "same", "stride": (2, 2)}, 'with stride 1, "same"; got padding same'),
    ("conv2d", (f32(2, 4, 8, 8), f32(3, 2, 3, 3)), {"groups": 2}, "C/2"),
    ("conv1d", (f32(2, 3, 8), f32(4, 2, 3)), {}, r"conv1d: expected x \(\.\.\., C, L\)"),
    ("conv1d", (f32(2, 3, 8), f32(4, 3, 3)), {"padding": (-1,)}, "conv1d: expected 1 non-negative paddings"),
    ("conv_transpose2d", (f32(2, 3, 8, 8), f32(4, 3, 3, 3)), {}, r"weight \(C, O/1, kh, kw\); got x"),
    ("conv_transpose2d", (f32(2, 4, 8, 8), f32(4, 3, 3, 3), f32(3)), {"groups": 2}, r"expected bias \(6\); got bias"),
    ("conv_transpose2d", (f32(2, 4, 1, 1), f32(4, 3, 1, 1)), {"padding": (1, 1)}, "padding that leaves a result"),
    ("conv_transpose1d", (f32(2, 4, 8), f32(4, 3, 3)), {"stride": (1, 1)}, "conv_transpose1d: expected 1 of each"),
    ("embedding", (f32(4), Spec((2,), "int64")), {}, r"embedding: expected weight \(V, D\); got weight float32\[4\]"),
    ("embedding_bag", (f32(4, 2), Spec((2,), "int64")), {}, r"indices \(B, L\) or indices \(N,\) and offsets \(B,\)"),
    ("embedding_bag", (f32(4, 2), Spec((2, 2), "int64")), {"mode": "min"}, "mode among sum, mean, max; got mode min"),
    ("embedding_bag", (f32(4, 2), Spec((2, 2), "int64"), None, f32(2, 2)), {}, "per_sample_weights only with mode sum"),
    ("matmul", (f32(2, 3), f32(4, 3)), {}, r"matmul: expected a \(\.\.\., M, K\) and b \(\.\.\., K, N\); got a float32\[2, 3\]"),
    ("matmul", (f32(5, 2, 3), f32(4, 3, 2)), {}, "matmul: shapes do not broadcast"),
    ("matmul", (f32(), f32(3)), {}, "matmul: expected a"),
    ("addmm", (f32(3), f32(2, 3), f32(3, 4)), {}, "addmm: shapes do not broadcast"),
    ("addmm", (f32(5, 2, 4), f32(2, 3), f32(3, 4)), {}, r"addmm: expected c that broadcasts to float32\[2, 4\]"),
    ("einsum", (f32(2, 3), f32(4, 5)), {"equation": "ij,jk->ik"}, "axis 'j': shapes do not broadcast"),
    ("einsum", (f32(2, 3),), {"equation": "ij,jk->ik"}, "expected 1 terms for 1 operands"),
    ("einsum", (f32(2, 3),), {"equation": "ij->ii"}, "each once"),
    ("einsum", (f32(2, 3),), {"equation": "ij->ik"}, "a result of letters that operands have"),
    ("einsum", (f32(2, 3),), {"equation": "i1->i"}, "an equation such as"),
    ("einsum", (f32(2, 3),), {"equation": "ijk"}, "an operand with axes 'ijk'"),
    ("batch_norm", (f32(2, 3), f32(3), f32(4)), {}, r"batch_norm: expected running_var \(3\); got running_var float32\[4\]"),
    ("batch_norm", (f32(3), f32(3), f32(3)), {}, r"batch_norm: expected x \(B, C, \.\.\.\)"),
    ("layer_norm", (f32(2, 3),), {"normalized_shape": (2,)}, "layer_norm: expected x that ends in normalized_shape"),
    ("layer_norm", (f32(2, 3), f32(2)), {"normalized_shape": (3,)}, r"layer_norm: expected weight \(3\)"),
    ("rms_norm", (f32(2, 3),), {"normalized_shape": ()}, "rms_norm: expected x that ends"),
    ("group_norm", (f32(2, 6),), {"num_groups": 4}, r"group_norm: expected x \(B, C, \.\.\.\) with C a multiple of 4"),
    ("instance_norm", (f32(2, 6), f32(5)), {}, r"instance_norm: expected weight \(6\)"),
    ("softmax", (f32(2, 3),), {"dim": 2}, "softmax: expected an axis of 2, got 2"),
    ("log_softmax", (f32(2, 3),), {"dim": -3}, "log_softmax: expected an axis of 2, got -3"),
    ("scaled_dot_product_attention", (f32(2, 3), f32(4, 5), f32(4, 5)), {}, r"key \(\.\.\., S, E\)"),
    ("scaled_dot_product_attention", (f32(2, 3), f32(4, 3), f32(4, 5), f32(3, 4)), {}, "do not broadcast"),
    ("scaled_dot_product_attention", (f32(2, 3), f32(4, 3), f32(4, 5), Spec((2, 4), "int64")), {}, "attn_mask of bool or float32"),
    ("scaled_dot_product_attention", (f32(3, 2, 3), f32(2, 4, 3), f32(2, 4, 5)), {"enable_gqa": True}, "a multiple of the key"),
    ("lstm", (f32(3, 4, 5), None, None, f32(24, 5), f32(24, 6)), {}, "lstm: expected 4 weights, 4 for each layer and direction"),
    ("lstm", (f32(3, 4, 5), None, None, f32(24, 4), f32(24, 6)), {"bias": False}, r"lstm, cell 0: expected weight_ih \(24, 5\)"),
    ("lstm", (f32(3, 4, 5), f32(1, 3, 6), None, f32(24, 5), f32(24, 6)), {"bias": False}, r"lstm: expected h0 \(1, 4, 6\)"),
    ("gru", (f32(3, 4), None, f32(18, 5), f32(18, 6)), {"bias": False}, r"gru: expected x \(T, B, I\), or with batch_first"),
    ("gru", (f32(3, 4, 5), None, f32(24, 5), f32(24, 6)), {"bias": False}, r"gru, cell 0: expected weight_ih \(18, 5\)"),
    ("lstm_cell", (f32(4, 5), f32(4, 6), f32(3, 6), f32(24, 5), f32(24, 6)), {}, r"lstm_cell: expected c \(4, 6\)"),
    ("gru_cell", (f32(4, 5), f32(3, 6), f32(18, 5), f32(18, 6)), {}, r"gru_cell: expected x \(B, I\) and h \(B, H\)"),
]


@pytest.mark.parametrize(("op", "specs", "attrs", "message"), WRONG)
def test_a_wrong_shape_is_named(op: str, specs: Any, attrs: Any, message: str) -> None:
    row = OPS[op]
    with pytest.raises(ShapeError, match=message) as error:
        row.shape(*specs, **row.filled(attrs))
    assert op in str(error.value)


@pytest.mark.parametrize(
    ("op", "specs", "message"),
    [
        ("conv2d", (Spec((2, 3, 8, 8), "int64"), f32(4, 3, 3, 3)), r"conv2d: expected x in float32 or FP8; got int64\[2, 3, 8, 8\]"),
        ("embedding", (f32(4, 2), f32(3)), r"embedding: expected indices of an integer type; got float32\[3\]"),
        ("matmul", (f32(2, 3), Spec((3, 2), "bool")), "matmul: expected b in float32 or FP8"),
    ],
)
def test_a_wrong_type_is_named(op: str, specs: Any, message: str) -> None:
    row = OPS[op]
    with pytest.raises(DTypeError, match=message):
        row.shape(*specs, **row.filled({}))
