"""MiniLM through the native BERT reader and through torch.export of transformers' BertModel: do the two converted models agree?

python benchmarks/agreement.py --shared DIR --models DIR
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from fp8np.errors import InputError
from fp8np.model import Model
from fp8np.ptq.workflow import quantize_model
from fp8np_benchmarks.accuracy import sentences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    args = parser.parse_args()
    native, traced = (sentences("test", export)(args.shared, args.models) for export in (False, True))
    graphs = [w.graph() for w in (native, traced)]
    print("| recipe | largest difference of a hidden state | relative to the largest | STS-B test, native | traced |")
    print("|---|---|---|---|---|", flush=True)
    for recipe in ("fp32", "e4m3", "e3m4", "e5m2"):
        models = [Model(quantize_model(graph, recipe, native.calibration(), report_batches=0).graph) for graph in graphs]
        outputs = [[model.run(batch) for batch in native.batches()] for model in models]
        hidden = [[output["last_hidden_state"] for output in part] for part in outputs]
        difference = max(np.abs(a - b).max() for a, b in zip(*hidden, strict=True))
        largest = max(np.abs(a).max() for a in hidden[1])
        scores = [native.score(part) for part in outputs]
        print(f"| {recipe} | {difference:.2g} | {difference / largest:.1e} | {scores[0]:.4f} | {scores[1]:.4f} |", flush=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:  # weights or data are not where they should be
        sys.exit(f"error: {error}")
