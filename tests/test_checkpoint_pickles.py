"""Malicious and malformed pickles: refused with a `CheckpointError`, nothing executed, the reason named."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _checkpoints import legacy_bytes, read, zip_bytes

from fp8np.errors import CheckpointError, UnsafeCheckpointError
from fp8np_converters.checkpoint import read_checkpoint

# -- pickles that would run code --------------------------------------------------------------------------------------


class Calls:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def calls(module: str, name: str, *args: str) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(map(text, args)) + b"tR."


def calls_by_stack(module: str, name: str, *args: str) -> bytes:
    return b"\x80\x04" + text(module) + text(name) + b"\x93(" + b"".join(map(text, args)) + b"tR."


# name -> (pickle as a function of a shell command, what the message must name)
ATTACKS: dict[str, tuple[Callable[[str], bytes], str]] = {
    "os.system": (lambda c: pickle.dumps(Calls(os.system, c), 2), f"{os.system.__module__}.system"),
    "eval": (lambda c: pickle.dumps({"w": [Calls(eval, f"__import__('os').system({c!r})")]}, 4), "builtins.eval"),
    "exec": (lambda c: pickle.dumps(Calls(exec, f"import os; os.system({c!r})"), 5), "builtins.exec"),
    "protocol 0": (lambda c: b"cos\nsystem\n(S'" + c.encode() + b"'\ntR.", "os.system"),
    "getattr chain": (
        lambda c: (
            b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\n__import__\n(" + text("os") + b"tR" + text("system") + b"tR(" + text(c) + b"tR."
        ),
        "builtins.getattr, builtins.__import__",
    ),
    "attribute of a nested module": (lambda c: calls_by_stack("torch._utils", "os.system", c), "torch._utils.os.system"),
    "nested module as module": (lambda c: calls("torch.serialization.os", "system", c), "torch.serialization.os.system"),
    "dotted spelling of a known name": (
        lambda c: calls_by_stack("torch", "_utils._rebuild_tensor_v2", c),
        "torch._utils._rebuild_tensor_v2",
    ),
    "module inside a known class": (lambda c: calls_by_stack("collections", "OrderedDict.__init__", c), "collections.OrderedDict.__init__"),
    "computed name": (
        lambda c: b"\x80\x04" + text("os") + b"c_codecs\nencode\n(" + text("system") + text("latin1") + b"tR\x93(" + text(c) + b"tR.",
        "a computed name",
    ),
    "name from the memo": (
        lambda c: b"\x80\x04" + text("system") + b"\x940" + text("os") + b"h\x00\x93(" + text(c) + b"tR.",
        "os.system",
    ),
    "INST": (lambda c: b"\x80\x02(" + text(c) + b"ios\nsystem\n.", "os.system"),
    "OBJ": (lambda c: b"\x80\x02(cos\nsystem\n" + text(c) + b"o.", "os.system"),
    "NEWOBJ": (lambda c: b"\x80\x02csubprocess\nPopen\n(" + text(c) + b"t\x81.", "subprocess.Popen"),
    "NEWOBJ_EX": (lambda c: b"\x80\x04csubprocess\nPopen\n(" + text(c) + b"t}\x92.", "subprocess.Popen"),
    "copyreg extension": (lambda c: b"\x80\x02\x82\x07(" + text(c) + b"tR.", "copyreg extension 7"),
    "copyreg extension, long": (lambda c: b"\x80\x02\x84\x07\x00\x01\x00(" + text(c) + b"tR.", "copyreg extension 65543"),
    "BUILD on a class": (lambda c: b"\x80\x02cos\nenviron\n}" + text("x") + text(c) + b"sb.", "os.environ"),
    "persistent module": (lambda c: b"\x80\x02(" + text("module") + b"cevil\nNet\n" + text(c) + b"tQ.", "evil.Net"),
    "popped": (lambda c: b"\x80\x02cos\nsystem\n(" + text(c) + b"tR0N.", "os.system"),
    "as a key": (lambda c: b"\x80\x02}cos\nsystem\n(" + text(c) + b"tRNs.", "os.system"),
    "two names": (lambda c: pickle.dumps([Calls(os.system, c), Calls(eval, "1")], 2), "eval"),
}


@pytest.mark.parametrize("wrap", [bytes, zip_bytes, legacy_bytes], ids=["bare", "zip", "legacy"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_code_is_refused_and_not_run(tmp_path: Path, attack: str, wrap: Callable[[bytes], bytes]) -> None:
    make, name = ATTACKS[attack]
    proof = tmp_path / "executed"
    with pytest.raises(UnsafeCheckpointError, match="Nothing was executed") as caught:
        read(wrap(make(f"touch {proof}")), tmp_path)
    assert name in str(caught.value)
    assert not proof.exists()


def test_the_side_effect_file_would_be_seen(tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    pickle.loads(ATTACKS["os.system"][0](f"touch {proof}"))
    assert proof.exists()


def test_every_name_is_listed(tmp_path: Path) -> None:
    program = b"\x80\x02(" + b"".join(f"c{m}\n{n}\n)R".encode() for m, n in [("os", "fork"), ("a.b", "C"), ("os", "fork")]) + b"l."
    with pytest.raises(UnsafeCheckpointError, match=r"asks for os\.fork, a\.b\.C;"):
        read(zip_bytes(program), tmp_path)
    # Also where the pickle breaks off behind them.
    with pytest.raises(UnsafeCheckpointError, match=r"os\.fork, a\.b\.C"):
        read(zip_bytes(program[:-2]), tmp_path)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00xK\x01sb.",  # BUILD on a name
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n}b.",
        b"\x80\x02ccollections\nOrderedDict\n(K\x01K\x02tR.",  # wrong arguments
        b"\x80\x02cbuiltins\nint\n(K\x01tR.",  # a name that is never called
        b"\x80\x02ctorch\nfloat32\n)R.",
        b"\x80\x02X\x17\x00\x00\x00collections.OrderedDict)R.",  # a string is not a name
        b"\x80\x04ccollections\nOrderedDict\n)}\x92.",
        b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nctorch\nTensor\n)NtR.",
        b"\x80\x02cargparse\nNamespace\n)\x81.",  # state never set
        b"\x80\x02cargparse\nNamespace\n)\x812(K\x01l0}b1.",
        b"\x80\x02]K\x01K\x02s.",  # SETITEM on a list
        b"\x80\x02}]K\x01s.",  # a list as a key
        b"\x80\x05\x97.",  # out-of-band buffer
        b"\x80\x02P0\n.",
        b"\x80\x02h\x05.",
        b"\x80\x020.",
        b"\x80\x02\x85.",
        b"\x80\x02t.",
        b"\x80\x02.",
        b"\x80\x02S'\\q'\n.",
        b"\x80\x02S'no end\n.",
        b"\x80\x02I1x\n.",
        b"\x80\x02(K\x01d.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",  # LONG4 of 2 GiB
        b"\x80\x02\x8b\xff\xff\xff\xff.",  # LONG4 of negative length
        b"\x80\x02\x8bd\x00\x00\x00" + b"\x01" * 100 + b".",  # an integer too long to be printed cheaply
        b"\x80\x04\x8d" + b"\xff" * 8 + b".",  # BINUNICODE8 of 2**64
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
        b"\x80\x04X\x02\x00\x00\x00\xff\xff.",  # not UTF-8
        b"\xff\x02.",
    ],
)
def test_malformed_pickles(tmp_path: Path, program: bytes) -> None:
    for wrap in (zip_bytes, legacy_bytes):
        with pytest.raises(CheckpointError):
            read(wrap(program), tmp_path)


def test_frame_sizes_and_memo_indices_reserve_nothing(tmp_path: Path) -> None:
    program = b"\x80\x04\x95" + b"\xff" * 8 + b"]r\xff\xff\xff\xff0j\xff\xff\xff\xff."
    assert read(zip_bytes(program), tmp_path) == []


def laughs(levels: int) -> bytes:
    return b"]" + b"2\x86" * levels  # each level is a pair of the level below


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}" + laughs(60) + b"Ns.",
        b"\x80\x04\x8f(" + laughs(60) + b"\x90.",
        b"\x80\x04" + laughs(60) + b"2\x93.",
        b"\x80\x02cnumpy\ndtype\n(" + laughs(60) + b"tR.",
        b"\x80\x02ctorch\nSize\n(" + laughs(60) + b"tR.",
        b"\x80\x02(" + text("storage") + laughs(60) + b"tQ.",
    ],
)
def test_shared_nesting_is_neither_hashed_nor_printed(tmp_path: Path, program: bytes) -> None:
    for wrap in (zip_bytes, bytes):
        with pytest.raises(CheckpointError):
            read(wrap(program), tmp_path)


def test_deep_nesting_and_shared_values(tmp_path: Path) -> None:
    deep = read(zip_bytes(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."), tmp_path)
    assert len(deep) == 1
    assert len(read(zip_bytes(b"\x80\x02" + laughs(60) + b"."), tmp_path)) == 2


def test_calls_within_calls_do_not_nest(tmp_path: Path) -> None:
    depth = 5000
    call = b"ctorch._tensor\n_rebuild_from_type_v2\n"
    arguments = (b"(" + call + b"ctorch\nTensor\n") * depth + b")" + b"t" * depth
    with pytest.raises(CheckpointError, match="_rebuild_from_type_v2 is called with"):
        read(zip_bytes(b"\x80\x02" + call + arguments + b"R."), tmp_path)


def test_one_argument_taken_by_many_calls(tmp_path: Path) -> None:
    long = text("a" * 100_000)
    start = b"\x80\x02c_codecs\nencode\nq\x000(" + long + text("latin1") + b"tq\x010"
    with pytest.raises(CheckpointError, match="exhaust memory"):
        read(zip_bytes(start + b"(" + b"h\x00h\x01R" * 100_000 + b"l."), tmp_path)


def test_numpy_object_arrays(tmp_path: Path) -> None:
    array = np.array([{"a": 1}, None], dtype=object)
    for program in (pickle.dumps(array, 2), pickle.dumps(array, 5)):
        with pytest.raises(UnsafeCheckpointError, match="Python objects"):
            read(zip_bytes(program), tmp_path)
    np.savez(tmp_path / "x.npz", array=array)
    with pytest.raises(UnsafeCheckpointError, match=r"array\.npy: an array of Python objects"):
        read_checkpoint(tmp_path / "x.npz")


# -- tensors that reach outside their storage -------------------------------------------------------------------------


def tensor_program(
    offset: int, size: tuple[Any, ...], stride: tuple[Any, ...], count: int = 4, cls: str = "FloatStorage", view: Any = ()
) -> bytes:
    """A tensor over storage "0"; the standard library writes the numbers."""

    def put(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    storage = b"(" + text("storage") + f"ctorch\n{cls}\n".encode() + text("0") + text("cpu") + put(count) + b"".join(map(put, view)) + b"tQ"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor\n(" + storage + put(offset) + put(size) + put(stride) + b"tR."


def test_the_handmade_tensor_is_valid(tmp_path: Path) -> None:
    values = np.arange(4, dtype="<f4")
    got = read(zip_bytes(tensor_program(1, (2, 2), (1, 1)), s0=values.tobytes()), tmp_path)
    np.testing.assert_array_equal(got, [[1, 2], [2, 3]])


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (4, (), ()),
        (0, (2, 2), (3, 2)),
        (-1, (1,), (1,)),
        (0, (-1,), (1,)),
        (3, (2,), (-1,)),
        (0, (2,), (2**62,)),
        (0, (2**62,), (0,)),
        (0, (2**40, 2**40), (0, 0)),
        (2**63, (1,), (1,)),
        (0, (2,), (1, 1)),
        (0, (1,) * 65, (1,) * 65),
        (0, (2.0,), (1,)),
        (0, (None,), (1,)),
        (None, (1,), (1,)),
    ],
)
def test_tensor_outside_its_storage(tmp_path: Path, offset: Any, size: Any, stride: Any) -> None:
    for cls in ("FloatStorage", "BFloat16Storage"):
        with pytest.raises(CheckpointError):
            read(zip_bytes(tensor_program(offset, size, stride, cls=cls), s0=bytes(4 * (4 if cls == "FloatStorage" else 2))), tmp_path)


def test_the_message_says_what_is_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"shape \[2, 2\], strides \[3, 1\] and offset 0 reach element 4, but the storage holds 4"):
        read(zip_bytes(tensor_program(0, (2, 2), (3, 1)), s0=bytes(16)), tmp_path)


def test_unused_strides_may_be_anything(tmp_path: Path) -> None:
    assert read(zip_bytes(tensor_program(0, (1, 2), (2**62, 1)), s0=bytes(16)), tmp_path).shape == (1, 2)
    assert read(zip_bytes(tensor_program(9, (0, 2), (2**62, 1)), s0=bytes(16)), tmp_path).shape == (0, 2)


def test_storage_shorter_than_declared(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="shorter than declared: 15 bytes, for 4 elements"):
        read(zip_bytes(tensor_program(0, (1,), (1,)), s0=bytes(15)), tmp_path)
    with pytest.raises(CheckpointError, match="shorter than declared"):
        read(zip_bytes(tensor_program(0, (1,), (1,), count=2**62), s0=bytes(16)), tmp_path)
    with pytest.raises(CheckpointError, match="persistent id"):
        read(zip_bytes(tensor_program(0, (1,), (1,), count=-1), s0=bytes(16)), tmp_path)


def test_views_of_storages_in_legacy_files(tmp_path: Path) -> None:
    stored = struct.pack("<q4f", 4, 0, 1, 2, 3)
    for view, expected in (((("v", 1, 2),), [1, 2]), ((None,), [0, 1])):
        program = tensor_program(0, (2,), (1,), view=view)
        np.testing.assert_array_equal(read(legacy_bytes(program, ["0"], stored), tmp_path), np.array(expected, np.float32))
    for view in (("v", 3, 2), ("v", 1, 1), ("v", -1, 2), ("v",)):
        with pytest.raises(CheckpointError):
            read(legacy_bytes(tensor_program(0, (2,), (1,), view=(view,)), ["0"], stored), tmp_path)


@pytest.mark.parametrize(
    ("keys", "stored", "message"),
    [
        ([], b"", "'0' is not in the file"),
        (["0"], struct.pack("<q4f", 3, 0, 1, 2, 3), "stored as 3"),
        (["0"], struct.pack("<q3f", 4, 0, 1, 2), "12 bytes are left"),
        (["0"], struct.pack("<q4f", 2**62, 0, 1, 2, 3), "16 bytes are left"),
        (["0"], struct.pack("<q4f", -1, 0, 1, 2, 3), "stored as -1"),
        (["1"], struct.pack("<q4f", 4, 0, 1, 2, 3), "'1' belongs to no tensor"),
        ([0], struct.pack("<q4f", 4, 0, 1, 2, 3), "list of storages"),
    ],
)
def test_legacy_storages_that_do_not_fit(tmp_path: Path, keys: Any, stored: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(legacy_bytes(tensor_program(0, (2,), (1,)), keys, stored), tmp_path)


def test_storage_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"storage '0' is missing .*x/data/0"):
        read(zip_bytes(tensor_program(0, (1,), (1,))), tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda torch: torch.eye(2).to_sparse(), "sparse tensor.*to_dense"),
        (lambda torch: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), "QInt8Storage.*dequantize"),
        (lambda torch: torch.empty(2, device="meta"), "meta device"),
        (lambda torch: torch.zeros(2, dtype=torch.complex32), "complex32"),
        (lambda torch: torch.ones(2).untyped_storage(), "bare storage"),
    ],
)
def test_tensors_without_a_counterpart(tmp_path: Path, make: Callable[[Any], Any], message: str) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save([make(torch)], path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    assert not isinstance(caught.value, UnsafeCheckpointError)


def test_bools_are_zero_or_one(tmp_path: Path) -> None:
    # Byte values other than 0 and 1 in a bool storage are true, as in torch.
    got = read(zip_bytes(tensor_program(0, (4,), (1,), cls="BoolStorage"), s0=b"\x00\x01\x02\xff"), tmp_path)
    assert got.view(np.uint8).tolist() == [0, 1, 1, 1]


def test_numpy_array_with_the_wrong_number_of_bytes(tmp_path: Path) -> None:
    program = pickle.dumps(np.arange(3, dtype=np.uint8) + 65, 4)
    with pytest.raises(CheckpointError, match=r"uint8 \[3\]: expected 3 bytes, got 2"):
        read(zip_bytes(program.replace(b"C\x03ABC", b"C\x02AB")), tmp_path)
