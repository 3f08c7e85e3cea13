"""Files of tensors: nothing is lost, the bytes are safetensors, damaged files are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fp8np
from fp8np.errors import ArtifactError, ArtifactVersionError, DTypeError, FormatError
from fp8np.formats import FORMATS, FloatFormat, Specials, get_format
from fp8np.scaling import quantize
from fp8np.scheme import MX
from fp8np.tensor import QTensor
from fp8np.tensors import load_tensors, save_tensors


def assert_equal(got: Any, expected: Any) -> None:
    if not isinstance(expected, QTensor):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
        return
    assert (got.format, got.block, got.scale_format) == (expected.format, expected.block, expected.scale_format)
    np.testing.assert_array_equal(got.codes, expected.codes)
    np.testing.assert_array_equal(got.scale, expected.scale)
    assert got.scale.shape == expected.scale.shape


def tensors() -> dict[str, Any]:
    x = np.random.default_rng(0).standard_normal((6, 70)).astype(np.float32)
    result: dict[str, Any] = {f"format.{name}": QTensor(np.arange(1 << f.bits, dtype=np.uint8), f, 0.75) for name, f in FORMATS.items()}
    result |= {f"mx.{name}": quantize(x, name) for name in MX}
    x[0, 0] = np.nan
    result |= {
        "nan block": quantize(x, "mxfp4"),
        "transposed": quantize(x, "mxfp8_e4m3").T,
        "block": quantize(x, "e4m3fn", block=(4, 32)),
        "nvfp4": quantize(x, "e2m1fn", block=(1, 16), scale_format="e4m3fn"),
        "channels": quantize(x, "e3m4fn", axis=0),
        "bias@11": quantize(x, "e4m3@11"),
        "scalar": quantize(1.0, "e5m2"),
        "empty": quantize(np.zeros((0, 4)), "e5m2", block=(1, 2)),
        "scalar_scale": np.ones(2, np.float32),
        "array": np.arange(6).reshape(2, 3).T,
        "flags": np.array([True, False]),
        "bytes": np.arange(4, dtype=np.uint8),
    }
    return result


def test_nothing_is_lost(tmp_path: Path) -> None:
    given, path = tensors(), tmp_path / "all.safetensors"
    save_tensors(path, given, {"note": "ä", "epoch": "3"})
    loaded = load_tensors(path)
    assert loaded.metadata == {"note": "ä", "epoch": "3"}
    assert loaded.keys() == given.keys()
    for name, tensor in given.items():
        assert_equal(loaded[name], tensor)
    again = tmp_path / "again.safetensors"
    save_tensors(again, dict(reversed(loaded.items())), loaded.metadata)
    assert again.read_bytes() == path.read_bytes()


def test_the_safetensors_package_reads_it(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    given, path = tensors(), tmp_path / "all.safetensors"
    save_tensors(path, given)
    types = {name: entry["dtype"] for name, entry in safetensors.deserialize(path.read_bytes())}
    assert types["mx.mxfp8_e4m3"] == "F8_E4M3"
    assert types["mx.mxfp8_e5m2"] == "F8_E5M2"
    assert types["mx.mxfp8_e4m3_scale"] == "F8_E8M0"
    assert types["mx.mxfp4"] == "U8"
    assert types["block_scale"] == "F32"
    assert types["nvfp4_scale"] == "F8_E4M3"
    # A name that is taken is not used for a scale.
    assert types["scalar_scale_"] == "F32"


def test_loading_maps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": quantize(np.ones(4), "e4m3fn"), "y": np.ones(3, np.float32)})
    loaded = load_tensors(path)
    assert not loaded["x"].codes.flags.writeable
    assert not loaded["y"].flags.writeable
    save_tensors(path, {})
    assert fp8np.dequantize(loaded["x"]).tolist() == [1] * 4
    assert load_tensors(path) == {}


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "message"),
    [
        ({"x": [1.0]}, None, DTypeError, "'x': expected a QTensor or a NumPy array, got list"),
        ({"x": np.ones(2, np.complex64)}, None, DTypeError, "complex64"),
        ({1: np.ones(2, np.float32)}, None, ArtifactError, "strings as names"),
        ({"__metadata__": np.ones(2, np.float32)}, None, ArtifactError, "rename"),
        ({}, {"fp8np": "x"}, ArtifactError, "other than 'fp8np'"),
        ({}, {"x": 1}, ArtifactError, "strings"),
        ({"x": QTensor(np.zeros(2, np.uint8), FloatFormat("float8_e4m3fn", 4, 3, 7, Specials.IEEE, ""))}, None, FormatError, "'x'"),
    ],
)
def test_saving_refuses(tmp_path: Path, tensors: Any, metadata: Any, error: type[Exception], message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("before")
    with pytest.raises(error, match=re.escape(message)):
        save_tensors(path, tensors, metadata)
    assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_ml_dtypes_arrays_are_made_tensors_first(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(DTypeError, match=r"QTensor\(array\)"):
        save_tensors(tmp_path / "x.safetensors", {"x": np.zeros(2, ml_dtypes.float8_e4m3fn)})


def changed(path: Path, **changes: Any) -> None:
    """Rewrites the file with other facts about its tensor 'x'."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    description = json.loads(header["__metadata__"]["fp8np"])
    for key, value in changes.items():
        target = description if key in description else description["quantized"]["x"]
        target[key] = value
    header["__metadata__"]["fp8np"] = json.dumps(description)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "float8_e5m2"}, "expected a tensor of F8_E5M2"),
        ({"format": "e4m3fn"}, "canonical name"),
        ({"format": "float8_e9m9"}, "unknown format"),
        ({"format": "x" * 100_000}, "canonical name"),
        ({"format": 1}, "expected a string"),
        ({"scale": "y"}, "is not in the file"),
        ({"scale": "x"}, "is used twice"),
        ({"scale_format": None}, "expected a tensor of F32"),
        ({"block": [1, 1]}, "expected a scale of shape"),
        ({"block": [1, -1]}, "whole numbers"),
        ({"block": "ab"}, "expected an array"),
        ({"block": [1, 1e9]}, "whole numbers"),
        ({"more": 1}, "expected an object with format"),
        ({"version": 0}, "expected a version"),
        ({"version": "1"}, "expected a version"),
        ({"quantized": {}}, "know no scale"),
        ({"quantized": []}, "expected an object"),
    ],
)
def test_damaged_facts_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": quantize(np.ones((2, 64)), "mxfp8_e4m3")})
    changed(path, **changes)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_tensors(path)
    assert str(path) in str(caught.value)


def test_newer_and_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": quantize(np.ones(2), "e4m3fn")})
    changed(path, version=2)
    with pytest.raises(ArtifactVersionError, match="upgrade"):
        load_tensors(path)
    with pytest.raises(ArtifactError, match="folder"):
        load_tensors(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "missing")
    path.write_bytes(b"no")
    with pytest.raises(ArtifactError):
        load_tensors(path)


def test_a_model_is_not_a_file_of_tensors(tmp_path: Path) -> None:
    from fp8np.artifact import save
    from fp8np.build import GraphBuilder

    b = GraphBuilder()
    x = b.input("x", ("B", 3), "float32")
    path = tmp_path / "model.safetensors"
    save(b.finish(b.node("linear", (x, b.constant("w", np.ones((2, 3), np.float32))))), path)
    with pytest.raises(ArtifactError, match=r"open it with fp8np\.load"):
        load_tensors(path)
    save_tensors(path, {"x": np.ones(2, np.float32)})
    with pytest.raises(ArtifactError, match="expected an object with version, inputs"):
        fp8np.load(path)


def test_narrow_codes_are_checked_when_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": QTensor(np.full(64, 0x55, np.uint8), get_format("e3m4fn"))})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"float8_e3m4fn", b"float4_e2m1fn"))
    with pytest.raises(ArtifactError, match="codes of 4 bits"):
        load_tensors(path)
