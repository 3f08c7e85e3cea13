"""TOML and JSON files that people write, with the line of each key, so that a message can name it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Document", "read_document"]

_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_NAMES = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_NAMES})\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(rf"\s*({_NAMES})\s*=")
_LINE = re.compile(r"at line (\d+)")
_JSON_KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:')


@dataclass(frozen=True)
class Document:
    """What a file says, and where.

    Attributes:
        origin: the file's name, for messages.
        data: its table.
        lines: the line of each key, by its path: ("workload", 2, "metric"); positions count from 0.
    """

    origin: str
    data: Mapping[str, Any]
    lines: Mapping[tuple[str | int, ...], int]

    def place(self, *path: str | int) -> str:
        """Where a key stands, "paper.toml:31"; where there is none, the table it would be in.

        >>> Document("a.toml", {}, {("recipe", 0): 3, ("recipe", 0, "name"): 4}).place("recipe", 0, "weights")
        'a.toml:3'
        """
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.origin}:{self.lines[path[:end]]}"
        return self.origin


def read_document(path: Path, error: type[Exception]) -> Document:
    """A TOML file, or a JSON file by its suffix.

    Args:
        path: the file.
        error: the class to raise where it is not readable.

    Raises:
        OSError: there is no such file.
    """
    try:
        # A byte order mark is what some editors begin a file with.
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            data = json.loads(text)
            if not isinstance(data, dict):
                raise error(f"{path.name}: expected an object, got {type(data).__name__}")
            return Document(path.name, data, _json_lines(text, data))
        return Document(path.name, tomllib.loads(text), _toml_lines(text))
    except json.JSONDecodeError as problem:
        raise error(f"{path.name}:{problem.lineno}: not JSON: {problem.msg}") from problem
    except tomllib.TOMLDecodeError as problem:
        line = _LINE.search(str(problem))
        raise error(f"{path.name}:{line[1] if line else text.count(chr(10)) + 1}: not TOML: {problem}") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path.name}: not text in UTF-8: {problem}") from problem
    except RecursionError as problem:
        raise error(f"{path.name}: tables within tables too deep to be read") from problem


def _toml_lines(text: str) -> dict[tuple[str | int, ...], int]:
    # tomllib does not tell lines. What is in inline tables is found with the key they belong to.
    lines: dict[tuple[str | int, ...], int] = {}
    last: dict[tuple[str | int, ...], int] = {}
    table: tuple[str | int, ...] = ()

    def found(path: tuple[str | int, ...], number: int) -> None:
        for end in range(len(path), 0, -1):
            lines.setdefault(path[:end], number)

    for number, line in enumerate(text.split("\n"), 1):
        header = _HEADER.match(line)
        if header:
            table = ()
            for part in _parts(header[2]):
                # Of an array of tables the last one is meant.
                table = (*table, *((last[table],) if table in last else ()), part)
            if header[1] == "[[":
                last[table] = last.get(table, -1) + 1
                table = (*table, last[table])
            found(table, number)
        elif key := _KEY.match(line):
            found((*table, *_parts(key[1])), number)
    return lines


def _parts(names: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_NAME, names))


def _json_lines(text: str, data: Any) -> dict[tuple[str | int, ...], int]:
    # The keys of a JSON text come in the order in which the parsed object holds them.
    found = ((match[1], text.count("\n", 0, match.start()) + 1) for match in _JSON_KEY.finditer(text))
    lines: dict[tuple[str | int, ...], int] = {}

    def walk(part: Any, path: tuple[str | int, ...]) -> None:
        if isinstance(part, dict):
            for key, value in part.items():
                wanted = json.dumps(key)[1:-1]
                line = next((number for name, number in found if name in (key, wanted)), None)
                if line is not None:
                    lines[(*path, key)] = line
                walk(value, (*path, key))
        elif isinstance(part, list):
            for i, value in enumerate(part):
                walk(value, (*path, i))
                inner = [line for key, line in lines.items() if key[: len(path) + 1] == (*path, i)]
                if inner:
                    lines[(*path, i)] = min(inner)

    walk(data, ())
    return lines
