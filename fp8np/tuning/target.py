"""What a tuned model has to reach: a metric, and how much of FP32's figure may be lost."""

from __future__ import annotations

import hashlib
import math
import numbers
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fp8np.data import imported, is_factory, user_code
from fp8np.errors import InputError, TuningError
from fp8np.evaluate import Metric, metric_function
from fp8np.study.factories import source_of
from fp8np.study.statistics import passes, relative_loss

__all__ = ["Target"]


@dataclass(frozen=True)
class Target:
    """A metric and how much of it may be lost.

    Attributes:
        metric: a name of METRICS, ``pkg.mod:function``, or a function: takes all outputs and all labels, gives a number.
        tolerance: the largest loss that is accepted, as a part of FP32's figure.
        absolute: the tolerance is in the metric's own unit.
        lower_is_better: the metric counts errors.

    Raises:
        InputError: the metric is unknown, or the tolerance is not a number from 0 on.
    """

    metric: str | Metric
    tolerance: float = 0.01
    absolute: bool = False
    lower_is_better: bool = False
    _function: Metric = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.tolerance, int | float) and 0 <= self.tolerance < math.inf):
            raise InputError(f"tolerance: expected a number from 0 on, got {self.tolerance!r}")
        # A user's own is not made to give a float: what else it gives is worth a better message.
        own = imported(self.metric) if isinstance(self.metric, str) and is_factory(self.metric) else metric_function(self.metric)
        if not callable(own):
            raise InputError(f"metric {self.metric}: expected a function of outputs and labels, got {type(own).__name__}")
        object.__setattr__(self, "_function", own)

    @property
    def name(self) -> str:
        """Of the metric."""
        if isinstance(self.metric, str):
            return self.metric
        made = self.metric if hasattr(self.metric, "__qualname__") else type(self.metric)
        return f"{made.__module__}:{made.__qualname__}"

    @property
    def identity(self) -> str:
        """The metric's name; of a user's own with a digest of its module, so that a log knows when it has changed."""
        path = source_of(self.name) if is_factory(self.name) else None
        return self.name if path is None else f"{self.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"

    def measure(self, outputs: Any, labels: Any) -> float:
        """The metric's value. NaN is one: a model may be so broken that its metric is undefined.

        Raises:
            InputError: the metric fails, or does not give a number.
        """
        with user_code(self.name):
            value: Any = self._function(outputs, labels)
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value[()]
        if not isinstance(value, numbers.Real | np.bool_):
            raise InputError(f"metric {self.name}: expected a number, got {type(value).__name__} {value!r:.80}")
        return float(value)

    def check_baseline(self, value: float) -> None:
        """That losses can be measured from the FP32 model's value.

        Raises:
            InputError: it is not finite. TuningError: it is 0, and the tolerance is relative.
        """
        if not math.isfinite(value):
            raise InputError(
                f"metric {self.name}: expected a finite number of the FP32 model, got {value}: nothing can be compared with it"
            )
        if value == 0 and not self.absolute:
            raise TuningError(
                f"{self.name} of the FP32 model is 0, of which no loss can be a part: check the labels and the output that is measured, or "
                f"give the tolerance in units of {self.name} (--absolute)"
            )

    def loss(self, baseline: float, value: float) -> float:
        """How much is lost against FP32, in what the tolerance is given in. Infinite where there is no value.

        >>> Target("accuracy").loss(0.8, 0.76), Target("eer", absolute=True, lower_is_better=True).loss(0.0, 0.25)
        (0.050000000000000044, 0.25)
        """
        if math.isnan(value):
            return math.inf
        if self.absolute:
            return value - baseline if self.lower_is_better else baseline - value
        return relative_loss(baseline, value, lower_is_better=self.lower_is_better)

    def met(self, loss: float) -> bool:
        """Whether a loss is within the tolerance."""
        return passes(loss, self.tolerance)

    def text(self, loss: float) -> str:
        """A loss in words.

        >>> Target("accuracy").text(0.0123), Target("accuracy", absolute=True).text(-0.5), Target("accuracy").text(math.inf)
        ('loses 1.23 %', 'gains 0.5', 'gives no number')
        """
        if math.isinf(loss) and loss > 0:
            return "gives no number"
        return f"{'gains' if loss < 0 else 'loses'} {self.amount(abs(loss))}"

    def amount(self, loss: float) -> str:
        """A loss as a figure.

        >>> Target("accuracy").amount(0.01), Target("psnr", absolute=True).amount(0.1)
        ('1.00 %', '0.1')
        """
        return f"{loss:.4g}" if self.absolute else f"{100 * loss:.2f} %"
