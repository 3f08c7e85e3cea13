"""``python -m fp8np``: the command line."""

from __future__ import annotations

from fp8np.cli import main

if __name__ == "__main__":
    main(prog_name="fp8np")
