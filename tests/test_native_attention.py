"""Native attention against its definition in float64, within a bound that is derived, on every tier and uncompiled."""

from __future__ import annotations

import os

import numpy as np
import pytest
from _native import EPS, check_threads, check_tier, floats, run, sizes

from fp8np.kernels import attention as module
from fp8np.kernels._float_blocks import OFFSETS, PARTS, begin, block, end, load_to, pack_columns, pack_rows, put_left
from fp8np.kernels._jit import compiled, entry
from fp8np.kernels._native import float_at, put_float, word
from fp8np.kernels._program import Task
from fp8np.kernels._vector import floats as vector
from fp8np.kernels.attention import Heads, Mask, attention_task
from fp8np.layers.attention import attention as define

# The least float32, with which some networks mask.
HIDDEN = np.finfo(np.float32).min
# B, H, kv_heads, L, S, E, Ev
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (1, 2, 2, 5, 7, 3, 2),
    (2, 2, 1, 17, 9, 16, 33),
    (1, 1, 1, 33, 31, 40, 8),
    (1, 4, 2, 3, 100, 32, 32),
    (2, 3, 3, 128, 128, 64, 64),
    (1, 2, 1, 70, 130, 64, 48),
    (1, 1, 1, 545, 300, 64, 64),
    (1, 1, 1, 40, 600, 96, 100),
]


def operands(shape, scale=1.0):
    """q, k, v, amid NaN."""
    B, H, kv, L, S, E, EV = shape
    made = []
    for i, (rows, heads, width) in enumerate(((L, H, E), (S, kv, E), (S, kv, EV))):
        around = np.full((B, rows + 3, heads, width + 2), np.nan, np.float32)
        inside = around[:, 1 : rows + 1, :, 1 : width + 1]
        inside[:] = floats(*inside.shape, seed=i, scale=scale if i < 2 else 1.0)
        made.append(inside.transpose(0, 2, 1, 3))
    return made


def at(x):
    return Heads(x, *x.strides[:3])


def task(q, k, v, out, mask=None, scale=None, is_causal=False):
    m = None
    if mask is not None:
        full = np.broadcast_to(mask, (*q.shape[:3], k.shape[2]))
        m = Mask(full, *full.strides, boolean=full.dtype == bool)
    return attention_task(
        at(q),
        at(k),
        at(v),
        at(out),
        batch=q.shape[0],
        heads=q.shape[1],
        kv_heads=k.shape[1],
        queries=q.shape[2],
        keys=k.shape[2],
        width=q.shape[3],
        value_width=v.shape[3],
        scale=scale,
        is_causal=is_causal,
        mask=m,
    )


def attend(q, k, v, mask=None, **attrs):
    """(B, H, L, Ev), with the rows of all heads side by side in memory, as the next linear layer reads them."""
    out = np.full((q.shape[0], q.shape[2], q.shape[1], v.shape[3]), np.nan, np.float32).transpose(0, 2, 1, 3)
    run(task(q, k, v, out, mask, **attrs))
    return out


def defined(q, k, v, mask=None, scale=None, is_causal=False):
    """The definition in float64, and how far from it float32 may be.

    u is a rounding, 2^-24. A score is a sum of E products, of q times the scale, rounded: E + 3 roundings of its terms; parts leave out
    2^-22 of a term, 4 u; a mask adds one of itself, in other units, and one of the sum. exp(s - m) has a rounding of s - m, which is
    within 88 or else the exponential is zero, and 3 of its own. So with D the largest error of a score of the row, exponentials have a
    relative error of 2 D + 91 u, and their sum and that of values S + 10 u each, the last 10 for blocks, factors and the division.
    What a mask hides takes no part.
    """
    wide = [x.astype(np.float64) for x in (q, k, v)]
    if mask is not None and mask.dtype != bool:
        mask = mask.astype(np.float64)
    attrs = {"is_causal": is_causal, "scale": scale, "enable_gqa": True}
    with np.errstate(all="ignore"):
        exact = define(*wide, mask, **attrs)
        factor = abs(1 / np.sqrt(q.shape[3]) if scale is None else scale)
        k_abs = np.repeat(np.abs(wide[1]), q.shape[1] // k.shape[1], axis=1)
        sums = (np.abs(wide[0]) * factor) @ k_abs.swapaxes(-1, -2)
        added = np.zeros(1) if mask is None or mask.dtype.kind == "b" else np.where(mask > HIDDEN, np.abs(mask), 0)
        score = (EPS * ((q.shape[3] + 7) * sums + 2 * added)).max(-1, initial=0)[..., None]
        weighted = define(wide[0], wide[1], np.abs(wide[2]), mask, **attrs)
        bound = (2 * (2 * score + 91 * EPS) + 2 * EPS * (k.shape[2] + 10)) * weighted
    return exact, bound


def check(q, k, v, mask=None, **attrs):
    got = attend(q, k, v, mask, **attrs)
    exact, bound = defined(q, k, v, mask, **attrs)
    assert np.isfinite(exact).all()
    assert (np.abs(got - exact) <= bound).all(), np.nanmax(np.abs(got - exact) / np.maximum(bound, 1e-300))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("shape", sizes(*SHAPES, elements=2**14))
def test_shapes(shape, is_causal):
    check(*operands(shape), is_causal=is_causal)


@pytest.mark.parametrize("scale", [0.3, -2.0, 0.0])
def test_scale(scale):
    check(*operands((1, 2, 2, 20, 35, 8, 8)), scale=scale)


def masks(L, S):
    """Name -> mask, one for each way to lie in memory."""
    rng = np.random.default_rng(5)
    seen = rng.random((2, 3, L, S)) < 0.6
    seen[..., 0] = True
    added = floats(2, 3, L, S, seed=6)
    added[~seen] = -np.inf
    return {
        "padding": np.where(np.arange(S) < S - S // 3, 0, HIDDEN),
        "padding, bool": np.arange(S) < S - S // 3,
        "a row": added[0, 0, :, :1] * 0,
        "a row, bool": np.ones((L, 1), bool),
        "heads": seen[:1, :, :1],
        "everything": added,
        "everything, bool": seen,
        "transposed": np.ascontiguousarray(added.swapaxes(2, 3)).swapaxes(2, 3),
        "transposed, bool": np.ascontiguousarray(seen.swapaxes(2, 3)).swapaxes(2, 3),
        "batches": np.where(seen[:, :1, :1], added[:, :1, :1], HIDDEN),
        "all hidden": np.full((L, S), HIDDEN),
    }


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", masks(2, 2))
@pytest.mark.parametrize("size", sizes((37, 50), (5, 19), (65, 300), elements=100))
def test_masks(name, size, is_causal):
    q, k, v = operands((2, 3, 3, *size, 16, 8))
    check(q, k, v, masks(*size)[name], is_causal=is_causal)


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_a_row_that_sees_nothing(dtype):
    q, k, v = operands((1, 1, 1, 40, 300 if compiled() else 40, 8, 8))
    mask = np.ones((q.shape[2], k.shape[2]), bool)
    mask[3] = mask[33] = False
    mask[34, :270] = False
    mask[34, 5] = not compiled()
    if dtype is not bool:
        mask = np.where(mask, 0, -np.inf).astype(np.float32)
    got = attend(q, k, v, mask)
    assert (got[0, 0, [3, 33]] == 0).all()
    check(q, k, v, mask)


def test_no_keys_no_queries():
    q, k, v = operands((2, 2, 2, 5, 0, 8, 8))
    assert (attend(q, k, v) == 0).all()
    assert attend(*operands((2, 2, 2, 0, 5, 8, 8))).size == 0
    assert attend(*operands((0, 2, 2, 4, 5, 8, 8))).size == 0


@pytest.mark.parametrize("keys", sizes(10, 200, elements=20))
@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("what", [np.nan, np.inf, -np.inf, 3.4e38])
def test_not_finite(which, what, keys):
    """NaN and infinities go where the definition has them; rows and columns that they do not reach stay what they were."""
    x = dict(zip("qkv", operands((1, 2, 2, 40, keys, 16, 8)), strict=True))
    x[which][0, 1, 5, 3] = what
    if what == 3.4e38:
        # Times this, what others have must stay finite.
        for other in x:
            x[other] *= np.float32(1 if other == which else 1e-3)
    got = attend(**x)
    exact, bound = defined(**x)
    nan = np.isnan(exact)
    np.testing.assert_array_equal(np.isnan(got), nan)
    with np.errstate(invalid="ignore"):
        assert (np.abs(got - exact) <= bound)[~nan & np.isfinite(exact)].all()
    np.testing.assert_array_equal(got[np.isinf(exact)], exact[np.isinf(exact)])


def test_large_scores():
    """Scores of thousands: one key takes all."""
    check(*operands((1, 1, 1, 50, 130 if compiled() else 20, 16, 8), scale=40.0))


def test_small_values():
    """Magnitudes whose middle and low parts are below the normal numbers."""
    q, k, v = operands((1, 1, 1, 20, 130 if compiled() else 20, 16, 8))
    got = attend(q, k, v * np.float32(1e-36))
    exact, bound = defined(q, k, v * np.float32(1e-36))
    # What a matrix unit takes for zero is below 2^-126 in each of the terms.
    assert (np.abs(got - exact) <= bound + 3 * k.shape[2] * 2.0**-126).all()


@pytest.mark.parametrize("keys", sizes(40, 130, elements=1))
def test_engines(keys, monkeypatch):
    """Whole numbers and parts, whichever the size would choose."""
    for start in (0, 1 << 30):
        monkeypatch.setattr(module, "PARTS_FROM", start)
        check(*operands((1, 2, 2, 40, keys, 40, 24)))


@pytest.mark.parametrize("shape", sizes((1, 3, 3, 200, 150, 32, 16), (16, 5, 5, 9, 8, 8, 8), (1, 1, 1, 700, 60, 8, 8), elements=2))
def test_threads(shape):
    q, k, v = operands(shape)
    out = np.empty((*q.shape[:3], v.shape[3]), np.float32)
    check_threads(task(q, k, v, out), out)


def test_writes_nothing_else():
    q, k, v = operands((2, 2, 2, 21, 30, 16, 5))
    around = np.full((2, 25, 2, 9), 77, np.float32)
    out = around[:, 2:23, :, 1:6].transpose(0, 2, 1, 3)
    run(task(q, k, v, out))
    np.testing.assert_array_equal(out, attend(q, k, v))
    around[:, 2:23, :, 1:6] = 77
    assert (around == 77).all()


@entry
def product(args, unit, scratch):
    # c (M, 32) = a (M, K) @ b (K, N) or, with `columns`, a @ b (N, K)^T, for up to 32 of each, by the functions of _float_blocks.
    a, b, c = word(args, 0), word(args, 1), word(args, 2)
    M, N, K, columns, parts = word(args, 3), word(args, 4), word(args, 5), word(args, 6), word(args, 7)
    begin(scratch, parts)
    left, right, sums, stage = scratch + 64, scratch + 16384, scratch + 32768, scratch + 40960
    seen = vector(np.float32(0))
    for r in range(M):
        x, y = load_to(a + 4 * K * r, K), load_to(a + 4 * K * r + 64, K - 16)
        seen = put_left(left + 256 * r, x, y, seen, parts)
    if columns:
        pack_columns(b, 4 * K, N, K, right, stage, parts)
    else:
        pack_rows(b, 4 * N, K, N, right, parts)
    block(left, 256, word(args, 8), right, sums, 1, M, parts)
    end(parts)
    for r in range(M):
        for n in range(32):
            put_float(c + 4 * (32 * r + n), float_at(sums + (n // 16) * 1024 + (r // 16) * 2048 + (r % 16) * 64 + n % 16 * 4))


@pytest.mark.parametrize("parts", [0, 1][: PARTS + 1])
@pytest.mark.parametrize("columns", [0, 1])
@pytest.mark.parametrize("shape", [(32, 32, 32), (7, 5, 3), (32, 17, 20), (16, 32, 1), (32, 32, 1)])
def test_blocks(shape, columns, parts):
    """What parts leave out, 2^-22, and their sum, 3 roundings; one more for each term."""
    M, N, K = shape
    a, c = floats(M, K), np.empty((M, 32), np.float32)
    b = np.full((2, *((N, K) if columns else (K, N))), np.nan, np.float32)
    b[0] = floats(*b.shape[1:], seed=1)
    run(Task(product, (a, b, c, M, N, K, columns, parts, OFFSETS), 1, 1 << 16))
    left, right = a.astype(np.float64), (b[0].T if columns else b[0]).astype(np.float64)
    bound = (2.0**-22 * parts + (K + 3 * parts) * EPS) * (np.abs(left) @ np.abs(right))
    assert (np.abs(c[:, :N] - left @ right) <= bound).all()
    assert (c[:, N:] == 0).all()


FEW = "test_scale or test_a_row or test_no_keys or test_not_finite or test_masks and 50 or test_shapes and shape5 or test_threads"


@pytest.mark.skipif("FP8NP_CPU" in os.environ or not compiled(), reason="is what this test starts")
@pytest.mark.parametrize("tier", ["plain", "avx2", "avx512", "uncompiled"])
def test_tiers(tier):
    check_tier(__file__, tier, FEW)
