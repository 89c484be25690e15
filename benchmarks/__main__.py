"""All benchmarks, each in a fresh process, then the report: about twenty minutes on two quiet cores.

python -m benchmarks                    what ``make bench`` and ``minilora bench`` run
python -m benchmarks forward nf4        some of them
python -m benchmarks --device cuda      options go to each
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from minilora.commands.bench import BENCHMARKS


def main(arguments: Sequence[str]) -> int:
    """Run the named ones, or all, and rewrite the tables; stops at the first that fails, with its exit status."""
    chosen = [name for name in arguments if name in BENCHMARKS] or list(BENCHMARKS)
    options = [argument for argument in arguments if argument not in BENCHMARKS]
    started = time.monotonic()
    for number, name in enumerate(chosen, 1):
        print(
            f"== {name} ({number} of {len(chosen)}, {(time.monotonic() - started) / 60:.0f} min so far)",
            flush=True,
        )
        if status := subprocess.call([sys.executable, "-m", f"benchmarks.{name}", *options]):
            return status
    print(f"== all done in {(time.monotonic() - started) / 60:.1f} min", flush=True)
    return subprocess.call([sys.executable, "-m", "benchmarks.report"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
