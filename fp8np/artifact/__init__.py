"""A converted model in one file: `save` and `load_graph`.

The file is safetensors: weights as tensors that any reader of that format opens, the graph as JSON in its metadata. It
holds no code. ``docs/artifact.md`` is the specification.

>>> import tempfile, pathlib
>>> import numpy as np
>>> from fp8np.build import GraphBuilder
>>> b = GraphBuilder()
>>> x = b.input("x", ("B", 3), "float32")
>>> graph = b.finish(b.node("linear", (x, b.constant("w", np.ones((2, 3), np.float32)))))
>>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
>>> save(graph, path)
>>> print(load_graph(path))
input   x: float32[B, 3]
const   w: float32[2, 3]
linear: float32[B, 2] = linear(x, w, None)
return  linear
"""

from __future__ import annotations

import os
from pathlib import Path

from fp8np._files import replacing
from fp8np.artifact._container import ELEMENT_OF, KEY, Stored, read_container, write_container
from fp8np.artifact._graph import decode_graph, encode_graph, scale_names
from fp8np.check import check
from fp8np.errors import ArtifactError, ArtifactVersionError, Fp8npError
from fp8np.graph import Graph
from fp8np.tensor import QTensor

__all__ = ["KEY", "load_graph", "save"]


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Writes a graph to a file, whole or not at all.

    Equal graphs give equal bytes, in whatever order their mappings were filled; only the keys of dicts in `graph.outputs`
    keep their order, which a caller of the model sees.

    Args:
        graph: checked here before anything is written.
        path: a ``.safetensors`` file; replaced in one step if it exists.

    Raises:
        GraphError: the graph breaks an invariant. ArtifactError: it cannot be written down (see the message).
        OSError: the file cannot be written; what stood at `path` is still there.
    """
    check(graph)
    scales = scale_names(graph.constants)
    tensors: dict[str, Stored] = {}
    for name, constant in graph.constants.items():
        if isinstance(constant, QTensor):
            tensors[name] = Stored(constant.format.stored_as, constant.codes)
            tensors[scales[name]] = Stored("F32", constant.scale)
        else:
            tensors[name] = Stored(ELEMENT_OF[constant.dtype.name], constant)
    text = encode_graph(graph, scales)
    with replacing(path) as temporary, temporary.open("wb") as file:
        write_container(file, tensors, {KEY: text})


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """Reads a file that `save` wrote.

    The file is not trusted: anything that the specification does not allow is refused, and the graph is checked. Weights
    are read-only views of the mapped file; the operating system reads them when they are first used, and keeps the file's
    contents alive as long as they live, even if the file is replaced by another `save`.

    Raises:
        ArtifactError: the file is damaged, inconsistent, or not a converted model; the message has the path and the place.
        ArtifactVersionError: the file was written by a newer fp8np. OSError: the file cannot be opened.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path}: expected a file that `fp8np convert` wrote, got a folder or a device")
    try:
        metadata, tensors = read_container(path)
        return check(decode_graph(metadata[KEY], tensors))
    except ArtifactVersionError as error:
        raise ArtifactVersionError(f"{path}: {error}") from error
    except Fp8npError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ArtifactError(f"{path}: nested too deeply") from error
