"""Reading JSON that nobody vouches for: each value is checked for its kind, and its place is named if it is another."""

from __future__ import annotations

import json
import math
from reprlib import repr as short
from typing import Any, NoReturn

from fp8np.errors import ArtifactError

__all__ = ["fields", "items", "mapping", "parse_json", "short", "text"]


def parse_json(content: str, place: str) -> Any:
    """JSON as its standard has it: no NaN, no key twice, no number that Python cannot hold.

    Raises:
        ArtifactError: the text is anything else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ArtifactError(f"{place}: the key {short(key)} occurs twice")
            result[text(key, place)] = value
        return result

    def finite(digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            raise ArtifactError(f"{place}: the number {short(digits)} is too large")
        return value

    def refuse(constant: str) -> NoReturn:
        raise ArtifactError(f"{place}: {constant} is not JSON")

    try:
        return json.loads(content, object_pairs_hook=unique, parse_float=finite, parse_constant=refuse)
    except ArtifactError:
        raise
    except RecursionError:
        raise ArtifactError(f"{place}: nested too deeply") from None
    except ValueError as error:
        raise ArtifactError(f"{place}: not JSON: {error}") from None


def fields(value: Any, place: str, *names: str) -> tuple[Any, ...]:
    """The values of an object that has these keys and no others, in this order."""
    if not isinstance(value, dict) or value.keys() != set(names):
        raise ArtifactError(f"{place}: expected an object with {', '.join(names)}, got {short(value)}")
    return tuple(value[name] for name in names)


def items(value: Any, place: str) -> list[Any]:
    """An array."""
    if not isinstance(value, list):
        raise ArtifactError(f"{place}: expected an array, got {short(value)}")
    return value


def mapping(value: Any, place: str) -> dict[str, Any]:
    """An object with any keys."""
    if not isinstance(value, dict):
        raise ArtifactError(f"{place}: expected an object, got {short(value)}")
    return value


def text(value: Any, place: str) -> str:
    """A string that can be printed: JSON can also spell halves of characters, such as ``"\\ud800"``."""
    if not isinstance(value, str):
        raise ArtifactError(f"{place}: expected a string, got {short(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ArtifactError(f"{place}: {value[:60]!a} is not valid Unicode") from None
    return value
