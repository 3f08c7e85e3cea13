"""Machine code in files: object code that LLVM made once, and that later processes link into themselves without a compiler.

A file is the SHA-256 of the rest, then an object in the platform's format. An object defines all that it calls, except what every
process has, such as memset: LLVM ends the process where a name is missing.
"""

from __future__ import annotations

import hashlib
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import llvmlite.binding

from fp8np._files import replacing

__all__ = ["link", "read", "write"]

_DIGEST = 32
_lock = threading.Lock()


def read(path: Path) -> bytes | None:
    """The object code in a file; None where there is no file, or not the whole of one."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, code = data[:_DIGEST], data[_DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def write(path: Path, code: bytes) -> None:
    """Writes what `read` reads.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(hashlib.sha256(code).digest() + code)


@lru_cache(maxsize=1)
def _engine() -> Any:
    llvmlite.binding.initialize_native_target()
    llvmlite.binding.initialize_native_asmprinter()
    machine = llvmlite.binding.Target.from_triple(llvmlite.binding.get_process_triple()).create_target_machine()
    return llvmlite.binding.create_mcjit_compiler(llvmlite.binding.parse_assembly(""), machine)


def link(code: bytes, symbol: str) -> int:
    """The address of a function that object code defines, valid as long as the process lives."""
    with _lock:
        engine = _engine()
        engine.add_object_file(llvmlite.binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
        return int(engine.get_function_address(symbol))
