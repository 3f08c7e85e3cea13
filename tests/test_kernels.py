"""What holds for the kernel table and its rows."""

from __future__ import annotations

import ast
import importlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from _products import assert_same_bits, random_codes

import fp8np.kernels
from fp8np.codec import decode, decode_table, encode
from fp8np.formats import FORMATS, get_format
from fp8np.kernels import _threads
from fp8np.kernels._cpu import Cpu
from fp8np.kernels._jit import Compiled
from fp8np.kernels._table import kernels, select
from fp8np.kernels._threads import threads
from fp8np.kernels._tile import DEPTH, LANES, products_are_exact
from fp8np.linalg import matmul
from fp8np.scaling import quantize
from fp8np.tensor import QTensor

FOLDER = Path(fp8np.kernels.__file__).parent
OPS = sorted({row.op for row in kernels()})
# How many formats an op is selected by.
OPERANDS = {
    "add_scaled": 0,
    "amax": 0,
    "amax_blocks": 0,
    "codes_used": 0,
    "conv2d": 2,
    "decode_f32": 1,
    "divide_blocks": 0,
    "encode_f32": 1,
    "encode_f32_stochastic": 1,
    "encode_f64": 1,
    "exact_gemm": 2,
    "exact_sum": 0,
    "gemm": 2,
    "gemm_aligned": 2,
    "gemm_sequential": 2,
    "histogram": 0,
    "multiply_blocks": 0,
    "quantize_f32": 1,
    "rounding_errors": 0,
}
E4M3 = get_format("e4m3fn")
E5M2 = get_format("e5m2")
LOW = get_format("e5m2@80")
NONE = np.empty(0, np.float32)


@pytest.mark.parametrize("name", OPS)
def test_every_op_ends_with_a_row_that_always_fits(name):
    last = [row for row in kernels() if row.op == name][-1]
    assert last.needs is Cpu.ANY
    for operands in itertools.product(FORMATS.values(), repeat=OPERANDS[name]):
        if name == "decode_f32" and not (operands[0].signed and operands[0].bits == 8):
            with pytest.raises(LookupError, match=f"no kernel for {name}"):
                select(name, *operands)
        else:
            assert last.takes(*operands)
            assert callable(select(name, *operands))


def test_rows_of_an_op_are_told_apart():
    assert set(OPERANDS) == set(OPS)
    for name in OPS:
        rows = [row for row in kernels() if row.op == name]
        assert len({(row.function, row.takes, row.needs) for row in rows}) == len(rows)
        assert all(row.order for row in rows)


@pytest.mark.parametrize("name", ["gemm", "conv2d"])
def test_rows_are_reproducible_where_products_are_float32(name):
    for a, b in itertools.product(FORMATS.values(), repeat=2):
        if products_are_exact(a, b):
            assert select(name, a, b, reproducible=True) is select(name, a, b)
        else:
            assert not (a.signed and b.signed)  # E8M0, and P3109 without a sign


def test_products_are_exact_where_it_is_said():
    shifted = [get_format(name) for name in ("e4m3@62", "e5m2@62", "e4m3@75", "e5m2@80", "e4m3@0", "e5m2@0")]
    said = []
    for a, b in itertools.product([*FORMATS.values(), *shifted], repeat=2):
        x, y = (t[np.isfinite(t)].astype(np.float64) for t in (decode_table(a), decode_table(b)))
        with np.errstate(over="ignore"):
            product = np.multiply.outer(x, y)
            exact = bool((product.astype(np.float32) == product).all())
        said.append(products_are_exact(a, b))
        assert exact or not said[-1]
        assert said[-1] == exact
    assert set(said) == {True, False}


def jitted_functions(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(getattr(d, "id", None) in {"exact", "fused"} for d in node.decorator_list):
            yield node


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.name)
def test_kernel_cores_are_plain_loops_that_cannot_fail(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    forbidden = ast.Raise | ast.Assert | ast.Try | ast.With | ast.Lambda | ast.List | ast.Dict | ast.ListComp | ast.DictComp | ast.Yield
    for function in jitted_functions(tree):
        for node in ast.walk(function):
            assert not isinstance(node, forbidden), f"{path.name}:{getattr(node, 'lineno', 0)}"
            assert node is function or not isinstance(node, ast.FunctionDef), f"{path.name}:{node.lineno}"
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print")


def codes(shape, seed=0, fmt=E4M3):
    return random_codes(np.random.default_rng(seed), fmt, shape)


def gemm(a, b, row_scale=(1,), column_scale=(1,), bias=(), out=None):
    result = np.zeros((max(len(a), len(b)), a.shape[1], b.shape[1]), np.float32) if out is None else out
    vectors = [np.array(v, np.float32) for v in (row_scale, column_scale, bias)]
    select("gemm", E4M3, E5M2)(a, decode_table(E4M3), b, decode_table(E5M2), *vectors, result)
    return result


def conv2d(x, w, out, stride=(1, 1), pads=(0, 0), dilation=(1, 1), groups=1, scale=None, bias=NONE):
    geometry = np.array([*stride, *pads, *dilation, groups], np.int64)
    result = np.full((len(x), len(w), *out), np.nan, np.float32)
    scale = np.ones(len(w), np.float32) if scale is None else scale
    select("conv2d", E4M3, E5M2)(x, decode_table(E4M3), w, decode_table(E5M2), geometry, scale, bias, result)
    return result


def exact_sum(parts):
    out = np.empty(parts.shape[1], np.float32)
    select("exact_sum")(parts, out)
    return out


def varied_results():
    """Results of all cores: thin and thick, shared and batched, every way of a convolution."""
    for M, N, K in ((1, 300, 40), (2, 9, 7), (3, 140, DEPTH + 1), (70, LANES * 2 + 1, 19)):
        for left, right in ((1, 1), (2, 1), (1, 2), (2, 2)):
            yield gemm(codes((left, M, K)), codes((right, N, K), 1, E5M2))
    for groups, w_shape in ((1, (9, 6, 3, 3)), (2, (10, 3, 3, 3)), (6, (12, 1, 3, 3)), (1, (5, 6, 1, 1)), (1, (5, 6, 11, 13))):
        out = (11 - w_shape[2] + 1, 13 - w_shape[3] + 1)
        yield conv2d(codes((3, 6, 11, 13)), codes(w_shape, 1, E5M2), out, groups=groups)
    yield conv2d(codes((3, 6, 11, 13)), codes((5, 6, 3, 2), 1, E5M2), (6, 9), (2, 3), (1, 8), (1, 2))
    yield conv2d(codes((3, 6, 11, 13)), codes((6, 1, 3, 2), 1, E5M2), (6, 9), (2, 3), (1, 8), (1, 2), 6)
    rng = np.random.default_rng(2)
    yield exact_sum(np.ldexp(rng.standard_normal((5, 1000)), rng.integers(-90, 90, (5, 1000))))


def test_the_bits_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(_threads, "MIN_WORK", 1)
    with threads(1):
        alone = list(varied_results())
    for count in (2, 3, 7):
        with threads(count):
            for got, expected in zip(varied_results(), alone, strict=True):
                assert_same_bits(got, expected)


def convert(name, writeable):
    """Sends a float array of every layout through every kernel of the codec."""
    x = np.random.default_rng(5).standard_normal((6, 4, 10))
    single = x.astype(np.float32)
    x.flags.writeable = single.flags.writeable = writeable
    for axis in (None, 0, 1, 2):
        q = quantize(single, name, axis=axis)
        results = [q.codes, encode(single[..., 0], name), encode(single[0, 0, 0], name)]
        q.codes.flags.writeable = writeable
        results += [encode(x, name, rounding=rounding) for rounding in ("nearest_even", "down")]
        for dtype in (np.uint8, np.uint32):
            bits = np.full(x.shape, 77, dtype)
            bits.flags.writeable = writeable
            results += [encode(values, name, rounding="stochastic_a", random_bits=bits) for values in (x, single)]
        for found in results:
            decode(found, name)


def test_one_signature_for_every_core():
    writable, frozen = codes((2, 5, 9)), codes((2, 7, 9), 1, E5M2)
    frozen.flags.writeable = False
    for a, b in ((writable, frozen), (frozen, writable)):
        gemm(a, b)
        gemm(np.ascontiguousarray(a[:, :1]), b[:1])
    picture, filters = codes((2, 4, 6, 6)), codes((4, 4, 3, 3), 1, E5M2)
    for flag in (True, False):
        picture.flags.writeable, filters.flags.writeable = flag, not flag
        conv2d(picture, filters, (4, 4))
        conv2d(picture, np.ascontiguousarray(filters[:, :1]), (4, 4), groups=4, bias=np.ones(4, np.float32))
    list(varied_results())
    for flag in (True, False):
        for name in ("e4m3fn", "e5m2", "e4m3fnuz"):
            convert(name, flag)
    for a, b in ((writable, frozen), (frozen, writable)):
        for accumulate, init in itertools.product(("exact", "sequential", "hopper", "cdna3"), (None, np.float32(1))):
            matmul(QTensor(a, E5M2), QTensor(b, E5M2).transpose(0, 2, 1), accumulate=accumulate, init=init)
        # Products that a float32 does not hold.
        matmul(QTensor(a, LOW), QTensor(b, LOW).transpose(0, 2, 1), accumulate="sequential")
    compiled = {}
    for path in FOLDER.glob("[!_]*.py"):
        cores = vars(importlib.import_module(f"fp8np.kernels.{path.stem}"))
        compiled |= {f"{path.stem}.{key}": core.signatures for key, core in cores.items() if isinstance(core, Compiled)}
    # A row's entry calls these. The other cores are inlined into them, some for float32 and for float64.
    called = {"gemm._panels", "gemm._thin", "gemm._plain", "conv._panels", "conv._depthwise", "aligned._stripes"}
    called |= {"exact._exact_sum", "exact_gemm._exact_gemm", "exact_gemm._codes_used", "stochastic._encode_f32_stochastic"}
    called |= {f"codec._{name}" for name in ("encode_f32", "encode_f64", "encode_f64_stochastic", "decode_f32")}
    called |= {f"codec._{name}" for name in ("quantize_rows", "quantize_columns", "amax_rows", "amax_columns")}
    assert {name: compiled[name] for name in called if len(compiled[name]) != 1} == {}


PURE = """
import hashlib, numpy as np, fp8np
results, rng = [], np.random.default_rng(6)
x = np.concatenate([rng.standard_normal(40) * 10.0 ** rng.integers(-45, 38, 40), [0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324]])
for name in ("e4m3fn", "e5m2", "e4m3fnuz", "e3m4", "e8m0fnu"):
    for rounding in ("nearest_even", "nearest_away", "toward_zero", "up", "down"):
        codes = fp8np.encode(x, name, rounding=rounding)
        results += [codes, fp8np.decode(codes, name)]
    results += [fp8np.encode(x, name, rounding="stochastic_a", random_bits=np.arange(x.size, dtype=np.uint8))]
    single = x.astype(np.float16).astype(np.float32)
    results += [fp8np.encode(single, name)]
for axis in (None, 0, 1, 2):
    q = fp8np.quantize(single[:40].reshape(4, 5, 2), "e5m2", axis=axis)
    results += [q.codes, q.scale]
shapes = (1, 9), (3, 9), (1, 2, 5, 5), (4, 2, 3, 3), (2, 1, 3, 3)
a = [fp8np.quantize(rng.standard_normal(shape).astype(np.float32), "e4m3fn") for shape in shapes]
for accumulate in ("fp32", "exact"):
    results += [fp8np.matmul(a[0], a[1].T, accumulate=accumulate), fp8np.matmul(a[1], a[1].T, accumulate=accumulate)]
    results += [fp8np.conv2d(a[2], a[3], accumulate=accumulate), fp8np.conv2d(a[2], a[4], groups=2, padding=1, accumulate=accumulate)]
print([hashlib.sha256(np.nan_to_num(r).tobytes()).hexdigest() for r in results])
"""


def test_kernels_give_the_same_bits_uncompiled():
    # With NUMBA_DISABLE_JIT=1, for debuggers and coverage, the cores run as the plain Python that they are.
    def run(**variables):
        environment = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1]), **variables}
        command = [sys.executable, "-W", "error", "-W", "ignore:overflow encountered in cast", "-c", PURE]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert run(NUMBA_DISABLE_JIT="1") == run()


@pytest.mark.parametrize("M", [1, 2, 3, 6])
def test_gemm_scales_then_adds_the_bias_each_with_one_rounding(M):
    rng = np.random.default_rng(3)
    a, b = codes((2, M, 20)), codes((2, 13, 20), 1, E5M2)
    start = rng.standard_normal((2, M, 13)).astype(np.float32)
    sums = gemm(a, b, out=start.copy())
    row, column, bias = (rng.standard_normal(n).astype(np.float32) for n in (M, 13, 13))
    for r, c, s in itertools.product((row, row[:1]), (column, column[:1]), (bias, NONE)):
        expected = sums * r[:, None] * c
        if s.size:
            expected = expected + s
        assert_same_bits(gemm(a, b, r, c, s, start.copy()), expected)


@pytest.mark.parametrize(
    ("w_shape", "groups", "out"),
    [((5, 6, 3, 3), 1, (9, 11)), ((5, 6, 1, 1), 1, (11, 13)), ((6, 1, 3, 3), 6, (9, 11)), ((5, 6, 11, 13), 1, (1, 1))],
)
def test_conv2d_scales_then_adds_the_bias_each_with_one_rounding(w_shape, groups, out):
    rng = np.random.default_rng(4)
    x, w = codes((2, 6, 11, 13)), codes(w_shape, 1, E5M2)
    sums = conv2d(x, w, out, groups=groups)
    scale, bias = (rng.standard_normal(len(w)).astype(np.float32) for _ in range(2))
    expected = sums * scale[:, None, None]
    assert_same_bits(conv2d(x, w, out, groups=groups, scale=scale), expected)
    assert_same_bits(conv2d(x, w, out, groups=groups, scale=scale, bias=bias), expected + bias[:, None, None])
