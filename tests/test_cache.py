"""Where compiled kernels are kept: reused by the next process, and never read from where others can write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from fp8np.kernels import _cache, _jit

SCRIPT = """
import os, warnings
from fp8np.kernels import codec
import fp8np
os.makedirs("elsewhere", exist_ok=True)
os.chdir("elsewhere")
assert fp8np.encode([1.0, -0.3], "e4m3fn").tolist() == [56, 170]
assert fp8np.encode([1.0], "e4m3fn", rounding="up").tolist() == [56]
cores = [core.dispatcher for core in vars(codec).values() if getattr(core, "signatures", None)]
print(sum(sum(core.stats.cache_hits.values()) for core in cores), sum(sum(core.stats.cache_misses.values()) for core in cores))
"""


def run(folder: Path, cache: str, **variables: str) -> tuple[int, int, list[str]]:
    """Cache hits and misses, and warnings, of a process that converts a little."""
    environment = {**os.environ, "FP8NP_CACHE": cache, "PYTHONPATH": str(Path(_jit.__file__).parents[2]), **variables}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    hits, misses = map(int, done.stdout.split())
    return hits, misses, [line for line in done.stderr.splitlines() if "Warning" in line]


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    hits, misses, warned = run(tmp_path, "kept")  # a relative path: it must survive a change of the working directory
    assert (hits, warned) == (0, [])
    assert misses > 0
    assert {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*.nbi")} == {("kept", f"kernels-{_cache.fingerprint()}")}
    again, missed, warned = run(tmp_path, "kept")
    assert again > 0
    assert (missed, warned) == (0, [])


def test_off_keeps_nothing_and_says_nothing(tmp_path: Path) -> None:
    hits, _, warned = run(tmp_path, "off", HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert (hits, warned) == (0, [])
    assert list(tmp_path.rglob("*.nbi")) == []


def test_a_place_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    hits, _, warned = run(tmp_path, str(tmp_path / "file"))
    assert (hits, len(warned)) == (0, 1)
    assert "cannot be kept in" in warned[0]
    assert "FP8NP_CACHE" in warned[0]


def prepared(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path | None:
    monkeypatch.setenv("FP8NP_CACHE", str(folder))
    return _cache.kept_in.__wrapped__()


def test_a_directory_of_our_own_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = prepared(monkeypatch, tmp_path / "new")
    assert directory == tmp_path / "new" / f"kernels-{_cache.fingerprint()}"
    assert directory.stat().st_mode & 0o777 == 0o700
    (tmp_path / "new").chmod(0o1777)  # sticky, as /tmp is
    assert prepared(monkeypatch, tmp_path / "new") == directory


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_directory_that_others_can_write_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int) -> None:
    directory = prepared(monkeypatch, tmp_path)
    assert directory is not None
    directory.chmod(mode)
    with pytest.warns(RuntimeWarning, match="writable by other users") as caught:
        assert prepared(monkeypatch, tmp_path) is None
    assert len(caught) == 1


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
def test_a_directory_that_others_could_exchange_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "open" / "inner").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    with pytest.warns(RuntimeWarning, match=r"open is writable by other users.*FP8NP_CACHE"):
        assert prepared(monkeypatch, tmp_path / "open" / "inner") is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
def test_a_directory_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.warns(RuntimeWarning, match="owned by another user"):
        assert prepared(monkeypatch, tmp_path) is None


def test_the_name_changes_with_everything_that_changes_machine_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_cache.py").write_text("first")
    (tmp_path / "gemm.py").write_text("x = 1")
    monkeypatch.setattr(_cache, "__file__", str(tmp_path / "_cache.py"))
    names = [_cache.fingerprint()]
    assert _cache.fingerprint() == names[0]
    (tmp_path / "gemm.py").write_text("x = 2")
    names.append(_cache.fingerprint())
    (tmp_path / "gemm.py").rename(tmp_path / "conv.py")
    names.append(_cache.fingerprint())
    monkeypatch.setenv("NUMBA_OPT", "1")
    names.append(_cache.fingerprint())
    monkeypatch.setattr(_cache, "_numba_version", lambda: "0.0.0")
    names.append(_cache.fingerprint())
    assert len(set(names)) == len(names)


def test_other_libraries_keep_their_own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert _jit.exact(lambda x: x)(3) == 3
    assert str(tmp_path) == numba.config.CACHE_DIR
