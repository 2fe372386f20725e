"""What a row of the benchmarks is, and how a script prints its own.

A benchmark script has a function `rows()` that yields `Row`s, and runs it by `harness.main(rows)`. `run.py` starts each
script in a process of its own, so that one's memory is not counted as another's, and writes all rows to one table.
"""

import argparse
import csv
import io
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import handclip  # noqa: F401  (before a script imports torchvision)

_TEXT, _NUMBER, _VERDICT = (str,), (float, int, NoneType), (bool, NoneType)
_PLAIN: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("what", "reference", "target", "result", "same_work", "note"), _TEXT),
    **dict.fromkeys(("seconds", "reference_seconds", "extra_mib"), _NUMBER),
    "met": _VERDICT,
}

LIBRARIES = ("torch", "torchvision", "numpy", "pillow", "simplejpeg", "open_clip_torch", "timm")


@dataclass(frozen=True)
class Row:
    """One measurement, and whether it meets its target."""

    what: str
    reference: str
    """What it is compared with, in the same run."""
    target: str
    """Such as "at least 9x"; empty where there is none."""
    result: str
    """Such as "11.3x"."""
    met: bool | None
    """None where there is no target, or it does not apply here; `note` then says why."""
    seconds: float | None = None
    reference_seconds: float | None = None
    extra_mib: float | None = None
    """Peak memory beyond what was there before."""
    same_work: str = ""
    """How it was proved, before measuring, that both sides give the same answer."""
    note: str = ""

    def __post_init__(self) -> None:
        """Make plain values of NumPy's, which JSON cannot hold, and refuse what else it cannot or no field is.

        Raises:
            TypeError: a value is of another type than its field.
        """
        for name, kinds in _PLAIN.items():
            value = getattr(self, name)
            if isinstance(value, np.generic):
                value = value.item()
                object.__setattr__(self, name, value)
            if type(value) not in kinds:
                raise TypeError(f"{name} of a row must be {_names(kinds)}, got {type(value)} {value!r}")

    @property
    def verdict(self) -> str:
        """`met`, `MISSED` or `-`."""
        return "-" if self.met is None else "met" if self.met else "MISSED"


def _names(kinds: Iterable[type]) -> str:
    return " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)


def failed_row(script: str, exit_code: int) -> Row:
    """Return the row that stands for what a script would have measured had it not failed."""
    note = f"exit code {exit_code}; rows above that it had yielded before are complete"
    return Row(f"{script}.py", "", "", "failed", met=False, note=note)


def require(condition: object, what: str) -> None:
    """Stop where a proof fails; unlike an assertion, under `python -O` as well.

    Raises:
        AssertionError: the condition does not hold.
    """
    if not condition:
        raise AssertionError(what)


def at_least(factor: float) -> str:
    """Return the text of a target."""
    return f"at least {factor:g}x"


def speedup_row(
    what: str, reference: str, *, reference_seconds: float, seconds: float, target: float | None = None, **others: Any
) -> Row:
    """Return the row of something that should be `target` times as fast as its reference."""
    ratio = reference_seconds / seconds
    return Row(
        what,
        reference,
        at_least(target) if target is not None else "",
        f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x",
        None if target is None else bool(ratio >= target),
        seconds,
        reference_seconds,
        **others,
    )


def seconds_of(function: Callable[[], Any], *, repeats: int = 1, warm_up: int = 0) -> float:
    """Return the median seconds that a call takes."""
    for _ in range(warm_up):
        function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextmanager
def extra_memory() -> Iterator[list[float]]:
    """Yield a list that holds, after the block, the MiB of its peak beyond what was resident before (Linux only)."""
    import torch

    from handclip.parallel.hardware import reset_peak_memory

    found: list[float] = []
    reset_peak_memory(torch.device("cpu"))
    before = _resident_mib("VmRSS")
    yield found
    found.append(_resident_mib("VmHWM") - before)


def _resident_mib(field: str) -> float:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) / 1024  # type: ignore[index]


def machine() -> dict[str, str]:
    """Return the processor, the cores that may be used, and the versions of what the time is spent in."""
    from handclip.cores import available_cores

    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        processor = re.search(r"model name\s*:\s*(.+)", text)[1]  # type: ignore[index]
    except (OSError, TypeError):
        processor = platform.processor() or platform.machine()
    return {
        "processor": processor.strip(),
        "cores": str(available_cores()),
        "python": platform.python_version(),
        "handclip": version("handclip"),
        **{name: version(name) for name in LIBRARIES},
    }


def file_stem(facts: dict[str, str], prefix: str = "cpu") -> str:
    """Return a file name that tells hardware and versions: `cpu_amd-epyc_2-cores_torch-2.13.0_handclip-0.1.0`."""
    processor = re.sub(r"[^a-z0-9]+", "-", facts["processor"].lower()).strip("-")
    torch_version = facts["torch"].split("+")[0]
    return f"{prefix}_{processor}_{facts['cores']}-cores_torch-{torch_version}_handclip-{facts['handclip']}"


def table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows as a table for a terminal."""
    grid = Table(title=title, show_lines=True)
    for heading in ("what", "against", "target", "result", "", "seconds", "extra MiB", "equal work, and notes"):
        grid.add_column(heading, overflow="fold")
    for row in rows:
        style = {"met": "green", "MISSED": "bold red"}.get(row.verdict, "")
        grid.add_row(*_cells(row), style=style)
    return grid


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    head = "| what | against | target | result | | seconds | extra MiB | equal work, and notes |"
    lines = [head, "| --- | --- | --- | ---: | --- | ---: | ---: | --- |"]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in _cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def csv_text(rows: Sequence[Row], facts: dict[str, str]) -> str:
    """Return the rows as CSV, with hardware and versions in each."""
    text = io.StringIO()
    names = [field.name for field in fields(Row)]
    writer = csv.DictWriter(text, [*names, "verdict", *facts], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**asdict(row), "verdict": row.verdict, **facts})
    return text.getvalue()


def _cells(row: Row) -> list[str]:
    seconds = [value for value in (row.seconds, row.reference_seconds) if value is not None]
    times = " against ".join(f"{value:.3g}" for value in seconds)
    memory = "" if row.extra_mib is None else f"{row.extra_mib:,.0f}"
    remarks = "; ".join(text for text in (row.same_work, row.note) if text)
    return [row.what, row.reference, row.target, row.result, row.verdict, times, memory, remarks]


def main(rows: Callable[[], Iterable[Row]]) -> None:
    """Print the rows of a script; with `--json FILE`, also write each as a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    done: list[Row] = []
    for row in rows():
        done.append(row)
        print(f"{row.what}: {row.result} {row.verdict if row.met is not None else ''}", file=sys.stderr, flush=True)
        if arguments.json is not None:
            with arguments.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    if arguments.json is None:
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
        Console(width=width).print(table(done, f"{machine()['processor']}, {machine()['cores']} cores"))
