"""Checkpoints read without torch equal what torch wrote: every dtype, layout, container and wrapper."""

from __future__ import annotations

import argparse
import collections
import io
import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8np.errors import CheckpointError
from fp8np.tensor import QTensor
from fp8np_converters.checkpoint import read_checkpoint, read_state_dict

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

SHARED = Path(__file__).parents[1].parent / "shared" / "models"

FORMATS = ["zip", "legacy"]
PLAIN = [
    *("float64", "float32", "float16", "complex128", "complex64", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
]
FLOAT8 = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]


def save(obj: Any, path: Path, how: str = "zip", **options: Any) -> Path:
    torch.save(obj, path, _use_new_zipfile_serialization=how == "zip", **options)
    return path


def assert_same(got: Any, expected: Any, where: str = "top") -> None:
    """Bit for bit, dtype and shape included."""
    if isinstance(expected, torch.Tensor):
        name = str(expected.dtype).removeprefix("torch.")
        expected = expected.detach()
        if name.startswith("float8"):
            assert isinstance(got, QTensor), where
            assert got.format.name == name, where
            got, expected = got.codes, expected.view(torch.uint8)
        elif name == "bfloat16":
            expected = expected.float()
        expected = expected.resolve_conj().resolve_neg().numpy()
    if isinstance(expected, np.ndarray):
        assert isinstance(got, np.ndarray), where
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape), where
        assert got.tobytes() == expected.tobytes(), where
        # Kernels are compiled for aligned arrays, and legacy files align nothing.
        assert got.flags.aligned, where
        assert not got.flags.writeable, where
    elif isinstance(expected, dict):
        assert type(got) is dict, where
        assert list(got) == list(expected), where
        for key, value in expected.items():
            assert_same(got[key], value, f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert type(got) is (list if isinstance(expected, list) else tuple), where
        assert len(got) == len(expected), where
        for index, value in enumerate(expected):
            assert_same(got[index], value, f"{where}[{index}]")
    else:
        assert type(got) is type(expected), where
        assert got == expected, where


def random_tensor(dtype: str, shape: tuple[int, ...]) -> Any:
    kind = getattr(torch, dtype)
    size = math.prod(shape) * kind.itemsize
    if size == 0:
        return torch.empty(shape, dtype=kind)
    raw = np.random.default_rng(len(dtype)).integers(0, 2 if dtype == "bool" else 256, size, np.uint8)
    return torch.from_numpy(raw).view(kind).reshape(shape)


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("dtype", [*PLAIN, "bfloat16", *FLOAT8])
def test_every_dtype(tmp_path: Path, dtype: str, how: str) -> None:
    tensors = {"matrix": random_tensor(dtype, (5, 7)), "scalar": random_tensor(dtype, ()), "empty": random_tensor(dtype, (0, 3))}
    assert_same(read_checkpoint(save(tensors, tmp_path / "x.pt", how)), tensors)


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "bool"])
def test_strided_expanded_shared_and_offset_tensors(tmp_path: Path, dtype: str, how: str) -> None:
    base = random_tensor(dtype, (6, 8))
    tensors = {
        "base": base,
        "transposed": base.t(),
        "rows": base[2:5],
        "steps": base[1::2, 3::3],
        "expanded": base[1:2].expand(4, 8),
        "scalar_expanded": base[0, 0].expand(3, 2),
        "last": base[5, 7],
        "no_rows": base[6:],
        "overlapping": base.flatten().as_strided((5, 4), (1, 2), 3),
    }
    assert_same(read_checkpoint(save(tensors, tmp_path / "x.pt", how)), tensors)


def test_shared_tensors_share_memory(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    got = read_checkpoint(save({"a": base, "b": base[3:]}, tmp_path / "x.pt"))
    assert np.shares_memory(got["a"], got["b"])


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    strides = draw(st.lists(st.integers(0, 9), min_size=len(shape), max_size=len(shape)))
    return tuple(shape), tuple(strides), draw(st.integers(0, 20))


@given(layouts(), st.sampled_from(["float32", "int16", "bfloat16", "float8_e5m2"]), st.sampled_from(FORMATS))
def test_any_layout(tmp_path_factory: pytest.TempPathFactory, layout: Any, dtype: str, how: str) -> None:
    shape, strides, offset = layout
    tensor = random_tensor(dtype, (200,)).as_strided(shape, strides, offset)
    path = tmp_path_factory.getbasetemp() / f"layout-{how}.pt"
    path.unlink(missing_ok=True)  # an earlier file may still be mapped
    assert_same(read_checkpoint(save([tensor], path, how)), [tensor])


@pytest.mark.parametrize("how", FORMATS)
def test_parameters_and_optimizer_state(tmp_path: Path, how: str) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    saved = {"epoch": 3, "model": net.state_dict(), "optimizer": optimizer.state_dict(), "parameters": list(net.parameters())}
    path = save(saved, tmp_path / "x.pt", how)
    assert_same(read_checkpoint(path), saved)
    assert_same(read_state_dict(path), net.state_dict())


def test_tensor_and_parameter_with_attributes(tmp_path: Path) -> None:
    tensor, parameter = torch.arange(3.0), torch.nn.Parameter(torch.ones(2))
    tensor.note, parameter.note = "kept by torch", "too"
    assert_same(read_checkpoint(save([tensor, parameter], tmp_path / "x.pt")), [tensor, parameter])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("how", FORMATS)
def test_plain_containers(tmp_path: Path, how: str, protocol: int) -> None:
    cycle: list[Any] = [1]
    saved = {
        "constants": [None, True, False, -1, 255, 65536, -(2**40), 2**127, 0.5, 1e300, "é", b"\x00\xff", b"", 2 + 1j],
        "nested": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[], {}]),
        "sets": [{1, "a"}, frozenset({(1, 2)}), set(), slice(1, None, 2)],
        "keys": {1: "int", (0, "a"): "tuple", None: "none"},
        "ordered": collections.OrderedDict(b=1, a=2),
        "long": list(range(3000)),
    }
    converted = [
        argparse.Namespace(lr=0.1, layers=[1, 2]),
        collections.defaultdict(list, a=[1]),
        collections.Counter("aab"),
        torch.Size([2, 3]),
        torch.device("cuda", 1),
        torch.float32,
        bytearray(b"ab"),
    ]
    plain = [{"lr": 0.1, "layers": [1, 2]}, {"a": [1]}, {"a": 2, "b": 1}, (2, 3), "cuda:1", "torch.float32", b"ab"]
    path = save([saved, converted, converted[0], cycle], tmp_path / "x.pt", how, pickle_protocol=protocol)
    got = read_checkpoint(path)
    assert_same(got[0], saved)
    assert got[1] == plain
    assert got[2] is got[1][0]


def test_a_list_that_holds_itself(tmp_path: Path) -> None:
    cycle: list[Any] = [1]
    cycle.append(cycle)
    got = read_checkpoint(save(cycle, tmp_path / "x.pt"))
    assert got[0] == 1
    assert got[1] is got


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", ">u2", "?", "<c8", "S3", "<U5", "f2"])
def test_numpy_arrays_in_a_pickle(tmp_path: Path, dtype: str, protocol: int) -> None:
    array = (np.arange(12).reshape(3, 4) % 2).astype(dtype)
    saved = {"c": array, "f": np.asfortranarray(array), "strided": array[:, ::2], "empty": array[:0], "scalar": array[1, 1], "again": array}
    path = tmp_path / "x.pt"
    for write in (lambda: save(saved, path, pickle_protocol=protocol), lambda: path.write_bytes(pickle.dumps(saved, protocol))):
        path.unlink(missing_ok=True)
        write()
        got = read_checkpoint(path)
        for name, expected in saved.items():
            assert got[name].dtype == expected.dtype.newbyteorder("=")
            np.testing.assert_array_equal(got[name], expected)
        assert got["again"] is got["c"]


def test_big_endian_zip(tmp_path: Path) -> None:
    tensors = {
        "f": torch.arange(5.0),
        "h": torch.arange(4, dtype=torch.bfloat16),
        "i": torch.arange(3),
        "b": torch.ones(2, dtype=torch.bool),
    }
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    path = tmp_path / "big.pt"
    width = {"0": 4, "1": 2, "2": 8, "3": 1}
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data, last = source.read(name), name.rpartition("/")[2]
            if "/data/" in name:
                data = np.frombuffer(data, f"V{width[last]}").view(np.uint8).reshape(-1, width[last])[:, ::-1].tobytes()
            target.writestr(name, b"big" if last == "byteorder" else data)
    assert_same(read_checkpoint(path), tensors)


# -- safetensors and npz ----------------------------------------------------------------------------------------------


def test_safetensors_every_dtype(tmp_path: Path) -> None:
    named = [*PLAIN, "bfloat16", "float8_e4m3fn", "float8_e5m2"]
    tensors = {name: random_tensor(name, (3, 5)) for name in named if name != "complex128"}
    tensors |= {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 4), "odd": torch.ones(3, dtype=torch.int8)}
    path = tmp_path / "misnamed.bin"
    safetensors_torch.save_file(tensors, path, metadata={"format": "pt"})
    got = read_checkpoint(path)
    assert_same({name: got[name] for name in tensors}, tensors)
    assert len(got) == len(tensors)


def sharded(folder: Path, kind: str) -> dict[str, Any]:
    shards = {f"one.{kind}": {"a": torch.ones(2)}, f"two.{kind}": {"b": torch.zeros(3), "c": torch.arange(4)}}
    for name, tensors in shards.items():
        safetensors_torch.save_file(tensors, folder / name) if kind == "safetensors" else torch.save(tensors, folder / name)
    where = {name: shard for shard, tensors in shards.items() for name in tensors}
    (folder / f"model.{kind}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return {name: tensor for tensors in shards.values() for name, tensor in tensors.items()}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path: Path, kind: str) -> None:
    tensors = sharded(tmp_path, kind)
    assert_same(read_checkpoint(tmp_path), tensors)
    assert_same(read_state_dict(tmp_path / f"model.{kind}.index.json"), tensors)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, write: Any) -> None:
    arrays = {"f": np.arange(6.0).reshape(2, 3), "t": np.asfortranarray(np.eye(3, 4)), "e": np.zeros((0, 2)), "s": np.array(3, "<i2")}
    write(tmp_path / "x.npz", **arrays, **{"group/name": np.array(["ab", "c"])}, big=np.arange(3, dtype=">f4"))
    got = read_checkpoint(tmp_path / "x.npz")
    assert_same({name: got[name] for name in arrays}, arrays)
    assert got["group/name"].tolist() == ["ab", "c"]
    assert_same(got["big"], np.arange(3, dtype=np.float32))


# -- state dicts ------------------------------------------------------------------------------------------------------

WEIGHTS = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "wrapped",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 1},
        {"model_state": WEIGHTS, "optimizer_state": {"state": {0: {"step": torch.tensor(1.0)}}}},
        {"model": {"params": WEIGHTS}},
        {"generator": WEIGHTS},
        {"net": WEIGHTS, "metrics": {"accuracy": torch.tensor(0.5)}},
        {"state_dict": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}},
        {f"module._orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()},
    ],
)
def test_state_dict_is_found(tmp_path: Path, wrapped: Any) -> None:
    assert_same(read_state_dict(save(wrapped, tmp_path / "x.pt")), WEIGHTS)


def test_prefix_stays_where_one_name_lacks_it(tmp_path: Path) -> None:
    tensors = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert_same(read_state_dict(save(tensors, tmp_path / "x.pt")), tensors)


def test_state_dict_by_key(tmp_path: Path) -> None:
    path = save({"model": {"a": torch.ones(1)}, "ema": {"model": {"a": torch.zeros(2)}}, "n": {"x": 1}}, tmp_path / "x.pt")
    assert read_state_dict(path, key="ema.model")["a"].shape == (2,)
    with pytest.raises(CheckpointError, match=r"more than one.*model \(1 tensors\), ema\.model \(1 tensors\).*key="):
        read_state_dict(path)
    with pytest.raises(CheckpointError, match=r"no 'other' in a dict of 'model'"):
        read_state_dict(path, key="ema.other")
    with pytest.raises(CheckpointError, match=r"tensors only, but these are not: x"):
        read_state_dict(path, key="n")


def test_no_state_dict(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no mapping .* 'epoch' \(int\)"):
        read_state_dict(save({"epoch": 1}, tmp_path / "x.pt"))


@pytest.mark.parametrize("name", ["resnet20_cifar10.th", "vdsr.pt"])
def test_published_checkpoints(name: str) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the repository")
    assert_same(read_checkpoint(path), torch.load(path, map_location="cpu", weights_only=True))
    assert all(isinstance(array, np.ndarray) for array in read_state_dict(path).values())
