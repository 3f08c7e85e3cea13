"""Names that a graph does not have yet."""

from __future__ import annotations

from fp8np.graph import Graph

__all__ = ["Names"]


class Names:
    """Gives out names that neither a value, a constant nor a node of the graph has, each once."""

    def __init__(self, graph: Graph) -> None:
        self._taken = {v.name for v in graph.inputs} | set(graph.constants) | set(graph.values) | {n.name for n in graph.nodes}

    def fresh(self, name: str) -> str:
        """`name`, or `name` with a number after it."""
        unique, i = name, 0
        while unique in self._taken:
            i += 1
            unique = f"{name}_{i}"
        self._taken.add(unique)
        return unique
