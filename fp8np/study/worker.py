"""The process that carries out what `fp8np.study.runner` tells it, about one workload: lines of JSON in, lines of JSON out.

In: first what holds for all, then ``{"do": "convert", "key": ...}`` or ``{"do": "cell", "entry": ..., "key": ...}``. Out:
``{"told": [what, done, total]}`` on the way, and ``{"result": ...}``. When nobody is left to tell it anything, it ends at once.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

__all__ = ["main"]


def main() -> None:
    """Works until there is nothing more to do."""
    # Ctrl-C is for the process that started this one, which ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    # What the user's code prints must not come between the lines.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    start = json.loads(sys.stdin.readline())
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    sys.path[:] = start["path"]
    _work(start, orders, out)


def _listen(orders: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(0)


def _work(start: dict[str, Any], orders: queue.SimpleQueue[dict[str, Any]], out: TextIO) -> None:
    from fp8np.kernels._jit import Step, watching
    from fp8np.study.cell import Settings, Workbench, machine_facts, reason_of
    from fp8np.study.spec import Cell, Entry, Workload
    from fp8np.study.store import Store

    def say(**message: Any) -> None:
        # Nobody to tell: `_listen` ends the process.
        with contextlib.suppress(OSError):
            out.write(json.dumps(message) + "\n")
            out.flush()

    def told(what: str, done: int, total: int | None) -> None:
        say(told=[what, done, total])

    def compiled(step: Step, done: bool) -> None:
        told(f"compiling kernels: {step.name}", step.number - (not done), step.count or None)

    workload = Workload(**start["workload"])
    settings = Settings(
        folders={name: Path(folder) for name, folder in start["folders"].items()},
        seed=start["seed"],
        resamples=start["resamples"],
        converter=start["converter"],
        keep=start["keep"],
        machine=machine_facts(start["threads"], start["jobs"]),
    )
    bench = Workbench(workload, Store(Path(start["directory"])), settings, told)
    with watching(compiled):
        while True:
            order = orders.get()
            if order["do"] == "convert":
                try:
                    bench.convert(order["key"])
                except Exception as error:
                    say(result={"status": "failed", "reason": reason_of(error)})
                else:
                    # A process that PyTorch was imported into is of no more use: it takes memory.
                    say(result={"status": "done", "heavy": "torch" in sys.modules})
            else:
                entry = None if order["entry"] is None else Entry.from_table(order["entry"])
                say(result=bench.record(Cell(workload.name, entry, start["tier"]), order["key"]))


if __name__ == "__main__":
    main()
