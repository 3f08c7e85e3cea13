"""Damaged files, and files of other kinds: refused with a `CheckpointError` that says why."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _checkpoints import read, zip_bytes

from fp8np.errors import CheckpointError
from fp8np_converters.checkpoint import read_checkpoint

torch = pytest.importorskip("torch")

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int16)}


def torch_bytes(obj: Any = TENSORS, how: str = "zip") -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=how == "zip")
    return buffer.getvalue()


def safetensors_bytes(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written) if length is None else length) + written + body


def npz_bytes(write: Any = np.savez) -> bytes:
    buffer = io.BytesIO()
    write(buffer, a=np.arange(6.0), b=np.ones((2, 3), np.int16))
    return buffer.getvalue()


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
VALID: dict[str, Callable[[], bytes]] = {
    "zip": torch_bytes,
    "legacy": lambda: torch_bytes(how="legacy"),
    "pickle": lambda: pickle.dumps({"a": np.arange(6.0)}, 4),
    "safetensors": lambda: safetensors_bytes({"a": ENTRY, "b": ENTRY | {"data_offsets": [8, 16]}}, bytes(16)),
    "npz": npz_bytes,
    "npz deflated": lambda: npz_bytes(np.savez_compressed),
}


@pytest.mark.parametrize("kind", VALID)
def test_truncated_anywhere(tmp_path: Path, kind: str) -> None:
    data = VALID[kind]()
    read(data, tmp_path)
    for length in sorted({*range(0, len(data), max(1, len(data) // 150)), *range(min(40, len(data))), len(data) - 1}):
        with pytest.raises(CheckpointError, match=r"x\.pt"):
            read(data[:length], tmp_path)


@pytest.mark.parametrize("kind", VALID)
def test_one_changed_byte(tmp_path: Path, kind: str) -> None:
    data = VALID[kind]()
    rng = random.Random(kind)
    refused = 0
    for _ in range(2000 if kind in ("zip", "legacy") else 500):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] = rng.randrange(256)
        try:
            read(bytes(changed), tmp_path)
        except CheckpointError:
            refused += 1
    assert refused > 0


def test_changed_weights_are_noticed(tmp_path: Path) -> None:
    data = torch_bytes()
    at = data.index(TENSORS["a"].numpy().tobytes())
    with pytest.raises(CheckpointError, match=r"checksum of .*data/0"):
        read(data[:at] + b"\x01" + data[at + 1 :], tmp_path)


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
def test_garbage(tmp_path: Path, size: int) -> None:
    for seed in range(20):
        with pytest.raises(CheckpointError):
            read(random.Random(seed).randbytes(size) + b"\xff", tmp_path)


def test_empty_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the file is empty"):
        read(b"", tmp_path, "empty")
    with pytest.raises(CheckpointError, match=r"absent\.pt: .*No such file"):
        read_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        read_checkpoint(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        read(VALID["safetensors"](), tmp_path, name)
    with pytest.raises(CheckpointError, match=r"2 files .*a\.safetensors, b\.safetensors"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"GGUF\x03", "a GGUF file"),
        (b"\x89HDF\r\n", "an HDF5"),
        (b"\x93NUMPY\x01\x00", "single NumPy array"),
        (bytes(257) + b"ustar\x0000", "tar file"),
    ],
)
def test_other_kinds_of_file(tmp_path: Path, start: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(start + bytes(100), tmp_path)


def archive_bytes(*names: str, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name in names:
            archive.writestr(name, pickle.dumps({}, 2))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "without data.pkl"),
        (["x/other"], "without data.pkl"),
        (["data.pkl"], "without data.pkl"),
        (["x/data.pkl", "x/constants.pkl", "x/code/__torch__.py"], "TorchScript.*state_dict"),
        (["x/data.pkl", "x/code/__torch__.py"], "TorchScript"),
        (["x/archive_format", "x/models/model.json"], r"torch\.export"),
        (["x/data.pkl", "x/byteorder"], "byteorder"),
    ],
)
def test_other_archives(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(archive_bytes(*names), tmp_path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="two members"):
        read(archive_bytes("x/data.pkl", "x/data.pkl"), tmp_path)


def test_compressed_and_bomb_members(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is compressed or encrypted"):
        read(zip_bytes(pickle.dumps({}, 2), zipfile.ZIP_DEFLATED), tmp_path)
    bombs = {"zip": "compressed or encrypted|ends before", "npz": "cannot come out of", "npz deflated": "cannot come out of"}
    for kind, message in bombs.items():
        data = VALID[kind]()
        # Declare the first member larger than the file: bytes 24 to 28 of its entry in the central directory.
        at = data.index(b"PK\x01\x02") + 24
        with pytest.raises(CheckpointError, match=message):
            read(data[:at] + struct.pack("<I", 2**31) + data[at + 4 :], tmp_path)
    data = VALID["zip"]()
    at = data.index(b"PK\x01\x02") + 20
    with pytest.raises(CheckpointError, match=r"the archive ends before|damaged or incomplete archive"):
        read(data[:at] + struct.pack("<II", 2**31, 2**31) + data[at + 8 :], tmp_path)


@pytest.mark.parametrize("kind", ["npz", "npz deflated"])
def test_npz_checksums(tmp_path: Path, kind: str) -> None:
    data = VALID[kind]()
    at = data.index(b"PK\x01\x02") + 16  # the CRC-32 of the first member, in the central directory
    with pytest.raises(CheckpointError, match=r"a\.npy is damaged: Bad CRC"):
        read(data[:at] + bytes(4) + data[at + 4 :], tmp_path)


def test_bytes_behind_a_plain_pickle(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="3 bytes follow the pickle"):
        read(VALID["pickle"]() + b"abc", tmp_path)


def test_npz_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(80)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", member)
    with pytest.raises(CheckpointError, match=r"a\.npy: .*needs 8000000000000 bytes, but 80"):
        read(buffer.getvalue(), tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (safetensors_bytes({"a": ENTRY}, bytes(7)), "bytes 0 to 8, of 7"),
        (safetensors_bytes({"a": ENTRY}, bytes(9)), "belong to none"),
        (safetensors_bytes({"a": ENTRY, "b": ENTRY}, bytes(8)), "overlap or leave a gap"),
        (safetensors_bytes({"a": ENTRY | {"data_offsets": [1, 9]}}, bytes(9)), "overlap or leave a gap"),
        (safetensors_bytes({"a": ENTRY | {"data_offsets": [8, 0]}}, bytes(8)), "bytes 8 to 0"),
        (safetensors_bytes({"a": ENTRY | {"data_offsets": [-8, 0]}}, bytes(8)), "bytes -8 to 0"),
        (safetensors_bytes({"a": ENTRY | {"shape": [3]}}, bytes(8)), "does not fill 8 bytes"),
        (safetensors_bytes({"a": ENTRY | {"shape": [-2]}}, bytes(8)), "non-negative"),
        (safetensors_bytes({"a": ENTRY | {"shape": [2.0]}}, bytes(8)), "non-negative"),
        (safetensors_bytes({"a": ENTRY | {"shape": [2**62, 2**62]}}, bytes(8)), "too large"),
        (safetensors_bytes({"a": ENTRY | {"dtype": "F4"}}, bytes(8)), "dtype F4 is not read"),
        (safetensors_bytes({"a": {"dtype": "F32"}}, bytes(8)), "expected dtype, shape"),
        (safetensors_bytes({"a": 1}), "expected dtype, shape"),
        (safetensors_bytes(b'{"a": 1, "a": 1}'), "twice"),
        (safetensors_bytes(b'{"a": '), "not JSON"),
        (safetensors_bytes(b'{"a": \xff}'), "not JSON"),
        (safetensors_bytes(b'{"a":' + b"[" * 200_000), "not JSON"),
        (safetensors_bytes({"a": ENTRY}, bytes(8), length=10_000), "declared as 10000 bytes"),
    ],
)
def test_bad_safetensors(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(data, tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"a": "../x.safetensors"}, "plain name"),
        ({"a": "/etc/passwd"}, "plain name"),
        ({"a": "sub\\x.safetensors"}, "plain name"),
        ({"a": ".."}, "plain name"),
        ({"a": ""}, "plain name"),
        ({"a": "absent.safetensors"}, r"absent\.safetensors is missing"),
        ({"a": "x.safetensors", "z": "x.safetensors"}, r"puts z into x\.safetensors, where it is not"),
        ({"a": 1}, "weight_map"),
        ({}, "weight_map"),
        ([], "weight_map"),
    ],
)
def test_bad_index(tmp_path: Path, index: Any, message: str) -> None:
    read(VALID["safetensors"](), tmp_path, "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read(json.dumps({"weight_map": index}).encode(), tmp_path, "model.safetensors.index.json")
