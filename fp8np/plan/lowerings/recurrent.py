"""lstm and gru."""

from __future__ import annotations

from typing import Any

LOWERINGS: dict[str, Any] = {}
