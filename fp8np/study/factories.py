"""Whether a function that a study names is there, without running its module: modules of workloads may take seconds to import."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

from fp8np.data import search_here

__all__ = ["missing", "source_of"]


def missing(text: str) -> str:
    """Why there is no ``package.module:function`` of this name; "" where there is, or where only importing it would tell.

    >>> missing("json:dumps"), missing("json:dump_all")
    ('', "json has no 'dump_all'")
    """
    module, _, attribute = text.partition(":")
    try:
        spec = _spec(module)
    except ModuleNotFoundError as error:
        # A package above it may lack something else that it needs: the process that runs the workload says so then.
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            return f"no module named {error.name!r}, neither in the current directory nor installed"
        return ""
    except Exception:
        return ""
    if spec is None:
        return f"no module named {module!r}, neither in the current directory nor installed"
    path = _python(spec)
    if path is None:
        return ""
    names = list(_names(path))
    if "*" in names or "__getattr__" in names or attribute.partition(".")[0] in names:
        return ""
    return f"{module} has no {attribute!r}"


def source_of(text: str) -> Path | None:
    """The file of the module that ``package.module:function`` is in, where it is one and is found."""
    try:
        spec = _spec(text.partition(":")[0])
    except Exception:
        return None
    return None if spec is None else _python(spec)


def _spec(module: str) -> ModuleSpec | None:
    search_here()
    return importlib.util.find_spec(module)


def _python(spec: ModuleSpec) -> Path | None:
    return Path(spec.origin) if spec.origin is not None and spec.origin.endswith(".py") else None


def _names(path: Path) -> Iterator[str]:
    """What a module defines, assigns or imports at its top level, inside of `if`, `try` and `with` too; "*" where that is not known."""
    try:
        statements: list[ast.AST] = list(ast.parse(path.read_text(encoding="utf-8")).body)
    except (SyntaxError, ValueError, OSError):
        yield "*"
        return
    while statements:
        node = statements.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        else:
            statements.extend(ast.iter_child_nodes(node))
