"""Prints what `fp8np verify` says of each planted bug in tests/_mutants.py, as a markdown table: the teeth of the suite.

python benchmarks/mutants.py
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from _mutants import CONVERSIONS, PRODUCTS, VALUES

from fp8np.verify import conversions, products, verify
from fp8np.verify.cases import policies


def main() -> None:
    # Two policies instead of fifty, and the law alone: a bug need not be found fifty times.
    kept = ("saturate, nearest_even", "ieee, nearest_even")
    conversions.policies = lambda fmt: [p for p in policies(fmt) if p[0] in kept]
    conversions.against_libraries = lambda *_: iter(())
    products.against_hardware = lambda *_: iter(())
    print("| planted bug | suite | results that differ | the report says |\n|---|---|---|---|")
    for mutant in (*CONVERSIONS, *VALUES, *PRODUCTS):
        rows = [row for row in verify(mutant.implementation(), formats=[mutant.format], suites=[mutant.suite]).rows if row.mismatches]
        said = Counter(row.diagnosis for row in rows).most_common(1)[0][0] if rows else "NOTHING: it passed"
        wrong, cases = sum(row.mismatches for row in rows), sum(row.cases for row in rows)
        print(f"| `{mutant.name}` | {mutant.suite} | {wrong:,} of {cases:,} | {said} |", flush=True)


if __name__ == "__main__":
    main()
