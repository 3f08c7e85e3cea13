from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fp8np.data import Batch, load_batches, read_arrays
from fp8np.dims import symbol
from fp8np.errors import CalibrationError, InputError
from fp8np.graph import Value

B = symbol("B")
X = (Value("x", (B, 3), "float32"),)
IDS = (Value("ids", (B, 4), "int64"), Value("mask", (B, 4), "int64"))


def _samples(n: int, *shape: int) -> Any:
    return np.arange(n * int(np.prod(shape)), dtype=np.float32).reshape(n, *shape)


def _joined(batches: list[Batch], name: str = "x") -> Any:
    return np.concatenate([batch.inputs[name] for batch in batches])


def test_npz_is_cut_into_batches_and_can_be_gone_through_again(tmp_path: Path) -> None:
    data = _samples(7, 3)
    np.savez(tmp_path / "d.npz", x=data, label=np.arange(7))
    batches = load_batches(tmp_path / "d.npz", inputs=X, batch_size=3)
    assert batches.count == 3
    for _ in range(2):
        got = list(batches)
        assert [b.samples for b in got] == [3, 3, 1]
        np.testing.assert_array_equal(_joined(got), data)
        np.testing.assert_array_equal(np.concatenate([b.label for b in got]), np.arange(7))


def test_arrays_given_by_position_are_matched_in_order(tmp_path: Path) -> None:
    ids, mask = np.ones((2, 4), np.int32), np.zeros((2, 4), np.int64)
    np.savez(tmp_path / "d.npz", ids, mask)
    np.save(tmp_path / "d.npy", _samples(2, 3).astype(np.float64))
    (batch,) = load_batches(tmp_path / "d.npz", inputs=IDS)
    np.testing.assert_array_equal(batch.inputs["ids"], ids)
    assert batch.inputs["ids"].dtype == np.int64
    (batch,) = load_batches(str(tmp_path / "d.npy"), inputs=X)
    assert batch.inputs["x"].dtype == np.float32
    assert list(next(iter(load_batches(tmp_path / "d.npz"))).inputs) == ["0", "1"]
    swapped = tuple(Value(name, (B, 4), "int64") for name in ("arr_1", "arr_0"))
    (batch,) = load_batches(tmp_path / "d.npz", inputs=swapped)
    assert batch.inputs["arr_0"].all()


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", _samples(2, 3) + 100)
    np.savez(tmp_path / "a.npz", x=_samples(3, 3))
    (tmp_path / "readme.txt").write_text("not data")
    batches = load_batches(tmp_path, inputs=X, batch_size=2)
    assert batches.count is None
    np.testing.assert_array_equal(_joined(list(batches)), np.concatenate([_samples(3, 3), _samples(2, 3) + 100]))


def test_factory_is_imported_from_the_current_directory_and_called_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calibration_data.py").write_text(
        "import numpy as np\n"
        "class Sets:\n"
        "    @staticmethod\n"
        "    def small():\n"
        "        for i in range(2):\n"
        "            yield np.full((1, 3), i, np.float32), i\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    batches = load_batches("calibration_data:Sets.small", inputs=X)
    for _ in range(2):
        assert [batch.label for batch in batches] == [0, 1]
    with pytest.raises(InputError, match=r"calibration_data:missing: .*missing"):
        load_batches("calibration_data:missing", inputs=X)
    with pytest.raises(InputError, match="no_such_module_at_all"):
        load_batches("no_such_module_at_all:f", inputs=X)


def test_iterables_of_every_form_of_batch() -> None:
    x = _samples(2, 3)
    for item, label in [
        (x, None),
        ((x,), None),
        ({"x": x}, None),
        ((x, 5), 5),
        ([x, 5], 5),
        (({"x": x}, 5), 5),
        (((x,), 5), 5),
        ({"x": x, "labels": 5}, 5),
    ]:
        (batch,) = load_batches([item], inputs=X)
        np.testing.assert_array_equal(batch.inputs["x"], x)
        assert batch.label == label
    pair = np.zeros((1, 4), np.int64), np.ones((1, 4), np.int64)
    (batch,) = load_batches([pair], inputs=IDS)
    assert batch.label is None
    assert batch.inputs["mask"].all()
    (batch,) = load_batches([(pair, "yes")], inputs=IDS)
    assert batch.label == "yes"


def test_an_input_called_label_is_an_input() -> None:
    (batch,) = load_batches([{"label": np.ones(2, np.float32)}], inputs=(Value("label", (2,), "float32"),))
    assert batch.label is None
    assert batch.inputs["label"].all()


def test_a_generator_is_kept_and_a_callable_called_again() -> None:
    def produce() -> Iterator[Any]:
        yield _samples(1, 3)
        yield _samples(2, 3)

    kept, called = load_batches(produce(), inputs=X), load_batches(produce, inputs=X)
    assert (kept.count, called.count) == (2, None)
    for batches in (kept, called):
        assert [b.samples for b in batches] == [b.samples for b in batches] == [1, 2]


def test_arrays_in_memory_are_cut_and_a_fixed_batch_is_kept() -> None:
    assert [b.samples for b in load_batches(_samples(5, 3), inputs=X, batch_size=4)] == [4, 1]
    fixed = (Value("x", (2, 3), "float32"),)
    assert [b.samples for b in load_batches({"x": _samples(4, 3)}, inputs=fixed)] == [2, 2]
    with pytest.raises(InputError, match="batches of 2"):
        load_batches(_samples(3, 3), inputs=fixed)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_their_place(bad: float) -> None:
    data = _samples(5, 3)
    data[4, 1] = bad
    batches = load_batches(data, inputs=X, batch_size=2)
    with pytest.raises(CalibrationError, match=r"batch 2, input 'x': .*(nan|inf) at \[0, 1\]"):
        list(batches)


def test_an_overflow_of_float32_is_refused() -> None:
    with pytest.raises(CalibrationError, match="inf"):
        list(load_batches([np.full((1, 3), 1e300)], inputs=X))


def test_no_samples_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "empty.npz", x=np.zeros((0, 3), np.float32))
    np.savez(tmp_path / "nothing.npz")
    (tmp_path / "folder").mkdir()
    for source in (tmp_path / "empty.npz", tmp_path / "nothing.npz"):
        with pytest.raises(CalibrationError, match="no samples"):
            load_batches(source, inputs=X)
    with pytest.raises(CalibrationError, match="found none"):
        load_batches(tmp_path / "folder", inputs=X)
    with pytest.raises(CalibrationError, match="no samples"):
        list(load_batches([], inputs=X))
    with pytest.raises(CalibrationError, match="no such file"):
        load_batches(tmp_path / "missing.npz", inputs=X)


def test_files_that_are_not_numpy_data_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", x=_samples(40, 3))
    whole = (tmp_path / "good.npz").read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 3] ^= 0xFF
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object))
    for name, content in {"garbage.npz": b"garbage", "cut.npz": whole[: len(whole) // 2], "flipped.npz": damaged, "empty.npy": b""}.items():
        (tmp_path / name).write_bytes(content)
    for name in ("garbage.npz", "cut.npz", "flipped.npz", "empty.npy", "objects.npy"):
        with pytest.raises(CalibrationError, match=f"{name}: not readable"):
            load_batches(tmp_path / name, inputs=X)
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(CalibrationError, match=r"expected an \.npz or \.npy file"):
        load_batches(tmp_path / "data.csv", inputs=X)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros((1, 4), np.float32), r"batch 0: input 'x': expected x: float32\[B, 3\], got shape \[1, 4\]"),
        ({"y": np.zeros((1, 3))}, "missing x: float32.*unknown y"),
        (np.zeros((1, 3), np.complex64), "expected numbers"),
        (np.array([["a", "b", "c"]]), "expected numbers"),
        ((np.zeros((1, 3)), 1, 2), "expected 1"),
    ],
)
def test_batches_that_do_not_fit_the_inputs_are_refused(item: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(load_batches([item], inputs=X))


def test_arrays_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(InputError, match="as many samples"):
        load_batches({"ids": np.zeros((2, 4)), "mask": np.zeros((3, 4))}, inputs=IDS)
    with pytest.raises(InputError, match="no axis 0"):
        load_batches({"x": np.float32(1)}, inputs=X)


def test_one_batch_is_read_as_it_is(tmp_path: Path) -> None:
    ids = np.ones((2, 4), np.int32)
    np.savez(tmp_path / "named.npz", mask=ids, ids=ids)
    np.savez(tmp_path / "unnamed.npz", ids, ids)
    np.save(tmp_path / "one.npy", np.full((1, 3), np.nan))
    assert set(read_arrays(tmp_path / "named.npz", IDS)) == set(read_arrays(tmp_path / "unnamed.npz", IDS)) == {"ids", "mask"}
    assert read_arrays(tmp_path / "named.npz", IDS)["ids"].dtype == np.int32
    assert np.isnan(read_arrays(tmp_path / "one.npy", X)["x"]).all()
    (tmp_path / "bad.npz").write_bytes(b"bad")
    for name, message in [("one.npy", "expected 2"), ("bad.npz", "not readable"), ("missing.npz", "not readable")]:
        with pytest.raises(InputError, match=message):
            read_arrays(tmp_path / name, IDS)


def test_things_that_are_no_data_are_refused() -> None:
    with pytest.raises(CalibrationError, match="int: expected a file"):
        load_batches(3, inputs=X)
    with pytest.raises(CalibrationError, match="iterable of batches, got int"):
        list(load_batches(lambda: 3, inputs=X))
