"""The shape of the code, measured: who imports whom, what an addition costs, what loads at import, how long modules are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fp8np
from fp8np.build import GraphBuilder
from fp8np.formats import FORMATS, FloatFormat, Specials
from fp8np.interpret import interpret
from fp8np.kernels import _table
from fp8np.layers import _op
from fp8np.layers._op import OPS, Spec, op
from fp8np.model import Model

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fp8np"
# The folders of modules; the others are installed as fp8np_converters, fp8np_benchmarks and fp8np_studies.
TOPS = ("fp8np", "converters", "benchmarks", "studies")

# docs/design.md: a module imports only from its own level or below. A folder's own modules share its level unless named.
LEVELS = {
    "errors": 0,
    "_settings": 0,
    "formats": 1,
    "integers": 1,
    "_finfo": 1,
    "_numbers": 1,
    "dims": 1,
    "_files": 1,
    "_page": 1,
    "policy": 2,
    "_sources": 2,
    "reference": 2,
    "scheme": 2,
    "accumulators": 2,
    "reference_sum": 2,
    "tensor": 3,
    "graph": 3,
    "kernels": 4,
    "codec": 5,
    "scaling": 5,
    "_engine": 5,
    "_exact": 5,
    "_packing": 5,
    "packed": 5,
    "_products": 5,
    "_aligned": 5,
    "_blocks": 5,
    "ordering": 5,
    "emulation": 5,
    "bounds": 6,
    "linalg": 5,
    "layers": 5,
    "_sizes": 6,
    "check": 6,
    "inputs": 6,
    "build": 6,
    "interpret": 6,
    "_toml": 1,
    "data": 7,
    "metrics": 7,
    "histogram": 7,
    "observers": 7,
    "artifact": 7,
    "tensors": 7,
    "plan": 8,
    "model": 9,
    "memory": 9,
    "warmup": 9,
    "describe": 7,
    "evaluate": 9,
    "verify": 9,
    "explain": 9,
    "plot": 9,
    "_terminal": 9,
    "watch": 9,
    "calibrate": 10,
    "ptq": 10,
    "difference": 11,
    "inspection": 11,
    "study": 11,
    "tuning": 11,
    "cli_recipe": 12,
    "cli_report": 12,
    "cli_source": 12,
    "cli_study": 12,
    "cli_tune": 12,
    "cli_bench": 12,
    "cli_verify": 12,
    "cli_explain": 12,
    "cli_warmup": 12,
    "cli": 12,
    "__init__": 12,
    "__main__": 12,
}
# Those that ask for the CPU, link code, and write LLVM instructions.
LLVM = {"_cache", "_compile", "_cpu", "_emit", "_fma", "_gates", "_lanes", "_native", "_objects", "_parts", "_peak", "_vector", "_x86"}
MAX_LINES = 400


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts), path


def imported(path: Path, *, whole_file: bool = True) -> set[str]:
    """Modules imported anywhere in a file, as dotted names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree) if whole_file else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def level(module: str) -> int:
    top = module.split(".")[0]
    assert top in LEVELS, f"fp8np/{top} has no level: give it one here and in docs/design.md"
    return LEVELS[top]


@pytest.mark.parametrize(("module", "path"), [m for m in modules() if m[0] != "__init__"])
def test_imports_go_down(module: str, path: Path) -> None:
    own = level(module)
    for name in imported(path):
        if name.startswith("fp8np.") and (ROOT / (name.replace(".", "/") + ".py")).exists() | (ROOT / name.replace(".", "/")).is_dir():
            assert level(name.removeprefix("fp8np.")) <= own, f"{module} (level {own}) imports {name}"


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_only_the_command_line_knows_the_converters(module: str, path: Path) -> None:
    known = {"torch", "transformers", "onnx", "gfloat", "fp8np_converters", "fp8np_benchmarks", "fp8np_studies"}
    foreign = {name.split(".")[0] for name in imported(path)} & known
    # The references that `fp8np verify` compares with, each where it is installed.
    assert not foreign or module in {"cli", "cli_bench", "verify.references"}, f"{module} imports {foreign}"
    assert "fp8np_benchmarks" not in foreign or module == "cli_bench"


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_only_kernels_import_numba(module: str, path: Path) -> None:
    packages = {name.split(".")[0] for name in imported(path)}
    # What has been compiled before runs without Numba: only what compiles knows it.
    assert "numba" not in packages or module == "kernels._compile"
    assert "llvmlite" not in packages or module in {f"kernels.{name}" for name in LLVM}
    layer = module.startswith("layers.")
    assert not (layer and any(name.startswith("fp8np.kernels") for name in imported(path))), f"{module} imports a kernel"


def test_settings_alone_reads_the_environment() -> None:
    # Messages name variables; whoever reads one has its name and nothing else in a string.
    for module, path in modules():
        strings = [n.value for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Constant)]
        read = [s for s in strings if isinstance(s, str) and re.fullmatch(r"FP8NP_\w*", s)]
        assert bool(read) == (module == "_settings"), module


def docstrings(tree: ast.AST) -> set[int]:
    """Identities of the constants that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body and isinstance(node.body[0], ast.Expr):
            found.add(id(node.body[0].value))
    return found


def test_formats_are_named_in_one_table() -> None:
    # policy: which vendor defines which format. recipe: which formats the paper's recipes use; cli_source: the default recipe.
    allowed = {"formats", "policy", "ptq.recipe", "cli_source"}
    names = set(FORMATS) | {re.sub(r"^float\d_", "", name) for name in FORMATS}
    for module, path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = docstrings(tree)
        strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in prose}
        assert not strings & names or module in allowed, f"{module} names {sorted(strings & names)}"


@pytest.mark.parametrize("path", [p for top in TOPS for p in (ROOT / top).rglob("*.py")], ids=lambda p: p.name)
def test_modules_can_be_read_in_a_sitting(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{path.name} has {lines} lines: make it a folder"


def test_every_folder_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {".".join(p.parent.relative_to(ROOT).parts) for top in TOPS for p in (ROOT / top).rglob("__init__.py")}
    assert sorted(listed) == sorted(re.sub("^(benchmarks|converters|studies)", r"fp8np_\1", name) for name in found)


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    heavy = ["numba", "llvmlite", "torch", "scipy", "onnx", "matplotlib", "ml_dtypes", "rich", "click", "safetensors", "transformers"]
    assert run_python(f"import fp8np, sys; print([m for m in {heavy!r} if m in sys.modules])") == "[]"


def test_checking_a_graph_needs_no_numba() -> None:
    code = """
import sys, numpy as np
from fp8np.build import GraphBuilder
b = GraphBuilder()
x = b.input("x", ("B", 3), "float32")
b.finish(b.node("linear", (x, b.constant("w", np.zeros((2, 3), np.float32)))))
print("numba" in sys.modules)"""
    assert run_python(code) == "False"


def test_every_public_name_exists() -> None:
    for name in fp8np.__all__:
        assert getattr(fp8np, name) is not None
    assert set(fp8np.__all__) <= set(dir(fp8np))
    with pytest.raises(AttributeError, match="no attribute 'encoed'"):
        fp8np.encoed  # noqa: B018


def test_a_format_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = FloatFormat("float8_e2m5", 2, 5, 1, Specials.NAN_AT_TOP, "this test")
    # `fp8np.formats` is the function of that name; the module is found here alone.
    monkeypatch.setattr(sys.modules["fp8np.formats"], "FORMATS", {**FORMATS, row.name: row})
    x = np.linspace(-3, 3, 50, dtype=np.float32).reshape(10, 5)
    q = fp8np.quantize(x, "e2m5")
    assert q.format is row
    assert np.abs(fp8np.dequantize(q) - x).max() <= 3 * row.eps
    exact = fp8np.matmul(q, q.T, accumulate="exact")
    np.testing.assert_allclose(fp8np.matmul(q, q.T), exact, rtol=1e-5)


def test_an_op_costs_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_op, "_rows", dict(OPS))
    _op.ops.cache_clear()
    try:
        op("twice", ("x",), shape=lambda x: Spec(x.shape), define=lambda x: x + x)
        b = GraphBuilder()
        x = b.input("x", ("B",), "float32")
        graph = b.finish(b.node("twice", (x,)))
        given = np.ones(3, np.float32)
        np.testing.assert_array_equal(Model(graph).run(given), interpret(graph, {"x": given}))
    finally:
        _op.ops.cache_clear()


def test_a_kernel_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(_table.kernels())
    row = _table.Kernel("gemm", lambda *_: None, _table.Cpu.ANY, lambda *f: f[0].mantissa_bits == 4, "none", False)
    monkeypatch.setattr(_table, "_rows", [row, *rows])
    _table.select.cache_clear()
    try:
        e3m4, e5m2 = FORMATS["float8_e3m4fn"], FORMATS["float8_e5m2"]
        assert _table.select("gemm", e3m4, e3m4) is row.function
        assert _table.select("gemm", e5m2, e5m2) is not row.function
        assert _table.select("gemm", e3m4, e3m4, reproducible=True) is not row.function
    finally:
        _table.select.cache_clear()
