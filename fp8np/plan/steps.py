"""What a plan is made of: steps in Python, FP8 values with their images, and places as words of tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fp8np.formats import FloatFormat
from fp8np.graph import Constant, Node
from fp8np.kernels._ending import View
from fp8np.kernels._grid import Image, round_words
from fp8np.kernels._program import Task, Word
from fp8np.kernels.widen import quantize_tokens_task
from fp8np.layers._op import OPS
from fp8np.plan.storage import At, Stored

__all__ = ["Grid", "Host", "Quantized", "attrs_of", "token_task", "word"]


@dataclass(frozen=True)
class Host:
    """A step in Python.

    Attributes:
        node: for messages.
        function: of the inputs, arrays or None; returns an array, or a tuple of them.
        inputs: stored values, or constants as they are.
        outputs: where the results are copied.
    """

    node: Node
    function: Callable[..., Any]
    inputs: tuple[Stored | Constant | None, ...]
    outputs: tuple[Stored, ...]


@dataclass
class Quantized:
    """An FP8 value while a plan is made.

    Attributes:
        node: the quantize node, whose input is rounded.
        format: to which format.
        scale: address of its float32 scale; of tokens, of one for each, written with their grid.
        fixed: the scale, where it is known beforehand.
        power_of_two: whether scales found at run time are.
        grid: the widened image, once it is made.
    """

    node: Node
    format: FloatFormat
    scale: Word
    fixed: float | None = None
    power_of_two: bool = False
    grid: Grid | None = None

    @property
    def source(self) -> str:
        """The value that is rounded."""
        return str(self.node.inputs[0])


@dataclass(frozen=True)
class Grid:
    """A widened image and where it is."""

    image: Image
    at: At

    @property
    def view(self) -> View:
        """Its pixels, without the zeros around them."""
        return View(word(self.at.plus(self.image.origin)), self.image.image, self.image.row, self.image.pitch)


def word(at: At) -> Word:
    """A place as a word of a task: its address is known once buffers have theirs."""
    return at  # type: ignore[return-value]


def token_task(source: Word, stride: int, q: Quantized, grid: Grid) -> Task:
    """Rows of floats as a widened matrix of tokens, with their scales."""
    sizes = grid.image.width, grid.image.channels
    rounding = round_words(q.format, q.scale)
    return quantize_tokens_task((source, stride), grid.view, grid.image.panel, sizes, rounding, power_of_two=q.power_of_two)


def attrs_of(node: Node) -> dict[str, Any]:
    """The attributes of a node without sizes among them, in full."""
    return OPS[node.op].filled(node.attrs)
