"""Seconds until the command line answers, beyond those that Python itself takes to start."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import Row, main

STARTS = 9
MOST_SECONDS = 0.5


def seconds_to_run(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def rows() -> Iterator[Row]:
    handclip = [str(Path(sys.executable).with_name("handclip")), "--help"]
    python = [sys.executable, "-c", "pass"]
    for command in (handclip, python):
        seconds_to_run(command)  # once for the file cache and the compiled modules
    pairs = [(seconds_to_run(handclip), seconds_to_run(python)) for _ in range(STARTS)]
    ours, plain = (statistics.median(side) for side in zip(*pairs, strict=True))
    yield Row(
        "start-up: handclip --help",
        "python -c pass",
        f"under {MOST_SECONDS} s more",
        f"{ours - plain:.2f} s more",
        ours - plain < MOST_SECONDS,
        ours,
        plain,
        note=f"median of {STARTS} starts",
    )


if __name__ == "__main__":
    main(rows)
