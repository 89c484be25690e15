"""All benchmarks, each in a fresh process, then the report: twenty minutes on two quiet cores.

python -m benchmarks                    all of them, as ``make bench`` and ``minilora bench`` do
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
    """Run the named ones, or all, and rewrite the tables; stop at a failure, with its status."""
    chosen = [name for name in arguments if name in BENCHMARKS] or list(BENCHMARKS)
    options = [argument for argument in arguments if argument not in BENCHMARKS]
    started = time.monotonic()
    for number, name in enumerate(chosen, 1):
        minutes = (time.monotonic() - started) / 60
        print(f"== {name} ({number} of {len(chosen)}, {minutes:.0f} min so far)", flush=True)
        if status := subprocess.call([sys.executable, "-m", f"benchmarks.{name}", *options]):
            return status
    print(f"== all done in {(time.monotonic() - started) / 60:.1f} min", flush=True)
    return subprocess.call([sys.executable, "-m", "benchmarks.report"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
