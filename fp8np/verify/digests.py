"""SHA-256 digests of all 2^32 float32 conversions: those that hardware gave, and one for every format and policy from the law.

``data/digests.json`` holds the latter. It keeps the law itself from changing unnoticed, and lets anybody check a converter without
fp8np: convert all float32 numbers in order of their bits, hash each 2^24 codes (a byte each), and hash the 256 digests.

``python -m fp8np.verify.digests`` writes it anew from the law; with ``--confirm`` the installed libraries then convert all numbers
as well, and are named in it where they agree. That takes minutes, and goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from fp8np._files import replacing
from fp8np.data import Progress
from fp8np.formats import FORMATS, FloatFormat, get_format
from fp8np.policy import PRESETS, Policy
from fp8np.verify.runs import CHUNK, CHUNKS, chunk_digests, conversions, label, root_digest, runs

__all__ = ["Recorded", "recorded", "shipped", "shipped_for", "write"]

FILE = "digests.json"

H100 = "NVIDIA H100, CUDA 13.0"
H100_TORCH = "NVIDIA H100, torch 2.11.0"


@dataclass(frozen=True)
class Recorded:
    """The digests of a conversion that hardware made.

    Attributes:
        origin: of the codes.
        preset: what was asked for.
        fmt: the format.
        policy: the preset's.
        chunks: the SHA-256 of each chunk of 2^24 codes.
    """

    origin: str
    preset: str
    fmt: FloatFormat
    policy: Policy
    chunks: tuple[bytes, ...]


@lru_cache(maxsize=1)
def recorded() -> tuple[Recorded, ...]:
    """Every set of digests measured on hardware that ships with the package."""
    folder = resources.files("fp8np.verify") / "data"
    found: list[Recorded] = []

    def add(origin: str, preset: str, name: str, chunks: Iterable[bytes]) -> None:
        fmt = get_format(name)
        found.append(Recorded(origin, preset, fmt, PRESETS[preset][fmt.name], tuple(chunks)))

    for key, digests in json.loads((folder / "hopper_f32_digests.json").read_text(encoding="utf-8"))["sha256"].items():
        chunks = map(bytes.fromhex, digests)
        if key.startswith("torch_cuda_"):
            add(H100_TORCH, "torch<2.12", key.removeprefix("torch_cuda_"), chunks)
        else:
            cuda, name, mode = key.split("_")
            add(H100, f"{cuda}_{mode}", name, chunks)
    with (folder / "hopper_narrow_f32.npz").open("rb") as file, np.load(file) as vectors:
        for key in vectors:
            name, _, mode = key.partition("_")
            add(H100, f"cuda_{mode or 'satfinite'}", name, map(bytes, vectors[key]))
    return tuple(found)


@lru_cache(maxsize=1)
def shipped() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """format -> policy -> {"sha256": of all codes, "equal": what gave the same codes for all numbers}, as the package has it."""
    path = resources.files("fp8np.verify") / "data" / FILE
    digests: dict[str, dict[str, dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))["digests"]
    return digests


def shipped_for(fmt: FloatFormat, policy: Policy) -> str | None:
    """The digest of a conversion, or None where the package has none.

    >>> shipped_for(get_format("e4m3fn"), Policy())[:16]
    '80cf7da33390af0e'
    """
    entry = shipped().get(fmt.name, {}).get(str(policy))
    return None if entry is None else str(entry["sha256"])


# -- making the file --------------------------------------------------------------------------------------------------

_ABOUT = (
    f"SHA-256 of the codes that all 2^32 float32 numbers become, in order of their bits, a byte each: of the {CHUNKS} digests (32 bytes "
    f"each) of {CHUNK} codes each, put together. From fp8np.reference; 'equal' names what gave the same codes for every number."
)


def write(
    path: Path,
    agreeing: Mapping[tuple[str, str], Iterable[str]] | None = None,
    told: Callable[[str], None] | None = None,
    formats: Iterable[FloatFormat] = tuple(FORMATS.values()),
) -> None:
    """Writes the digests of the law, and who agrees with it.

    Names in the file that is replaced are kept where the digest is the same as before.

    Args:
        path: the JSON file.
        agreeing: (format, policy) -> names to be added.
        told: called with a line for each format.
        formats: whose digests to make; those of others are kept.
    """
    before = json.loads(path.read_text(encoding="utf-8"))["digests"] if path.exists() else {}
    digests: dict[str, dict[str, Any]] = {name: before[name] for name in FORMATS if name in before}
    for fmt in formats:
        rows: dict[str, Any] = {}
        for policy in conversions(fmt):
            chunks = chunk_digests(runs(fmt, policy))
            root = root_digest(chunks)
            old = before.get(fmt.name, {}).get(str(policy), {})
            equal = {r.origin for r in recorded() if (r.fmt, r.policy, r.chunks) == (fmt, policy, chunks)}
            equal |= set(old["equal"]) if old.get("sha256") == root else set()
            equal |= set((agreeing or {}).get((fmt.name, str(policy)), ()))
            rows[str(policy)] = {"sha256": root, "equal": sorted(equal)}
        digests[fmt.name] = rows
        if told is not None:
            told(f"{fmt}: {len(rows)} policies")
    text = json.dumps({"about": _ABOUT, "digests": {name: digests[name] for name in FORMATS if name in digests}}, indent=1)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _confirm(path: Path, told: Callable[[str], None], progress: Progress | None = None) -> bool:
    # Whether everything agrees. The file is written after each format, and formats whose libraries it names are left out: a run
    # that was cut off goes on.
    from fp8np.verify.exhaustive import DIGESTS, THE_LAW, exhaustive, live

    clean = True
    named = json.loads(path.read_text(encoding="utf-8"))["digests"]
    for fmt in FORMATS.values():
        wanted = {(str(policy), title) for policy in conversions(fmt) for title, _ in live().get((fmt.name, policy), [])}
        if all(title in named.get(fmt.name, {}).get(policy, {}).get("equal", ()) for policy, title in wanted):
            continue
        same, agreeing = True, dict[tuple[str, str], list[str]]()
        policies = {label(policy, presets): str(policy) for policy, presets in conversions(fmt).items()}
        for row in exhaustive(formats=[fmt], progress=progress):
            if row.mismatches:
                same = False
                told(f"{fmt}, {row.policy}, {row.reference}: {row.mismatches:,} differ; {row.first[:1]} {row.diagnosis}")
            elif row.suite != DIGESTS and row.reference != THE_LAW and not row.skipped:
                agreeing.setdefault((fmt.name, policies[row.policy]), []).append(row.reference)
        # A library is compared with fp8np: where that departs from the law, agreement says nothing.
        if same:
            write(path, agreeing, told, [fmt])
        clean = clean and same
    return clean


def _main() -> None:
    import click

    @click.command(help=__doc__)
    @click.option(
        "--confirm", is_flag=True, help="Also convert all numbers with fp8np and the libraries installed, and name those that agree."
    )
    def main(confirm: bool) -> None:
        path = Path(str(resources.files("fp8np.verify") / "data" / FILE))
        if not confirm:
            write(path, told=click.echo)
        elif not _confirm(path, click.echo, lambda what, done, total: click.echo(f"\r{done} of {total} ", nl=False, err=True)):
            sys.exit(1)

    main()


if __name__ == "__main__":
    _main()
