"""Accuracy-driven tuning: the recipe changed until the user's own metric loses no more than a tolerance. docs/tuning.md.

`bench` quantizes by a recipe and measures, keeping what recipes share, and `log` what was measured; `change` says how a recipe is
altered node by node; `ranking` measures what each node costs; `search` is the strategy, and `run` puts them together.

>>> import numpy as np
>>> from fp8np.build import GraphBuilder
>>> b, rng = GraphBuilder(), np.random.default_rng(0)
>>> y = b.node("linear", (b.input("x", ("B", 8), "float32"), b.constant("w", rng.standard_normal((4, 8)))))
>>> x = rng.standard_normal((64, 8)).astype(np.float32)
>>> graph, labels = b.finish(y), (x @ x[:4].T).argmax(1)
>>> tuned = tune(graph, "e4m3-dynamic", {"x": x, "labels": labels}, "accuracy", tolerance=0.05)
>>> tuned.met, len(tuned.trials)
(True, 1)
"""

from fp8np.tuning.run import Tuned, tune
from fp8np.tuning.target import Target
from fp8np.tuning.trial import Trial

__all__ = ["Target", "Trial", "Tuned", "tune"]
