"""Gives readers mutated and hostile inputs, and reports every exception that is not a HandCLIPError.

    python fuzz/run.py --out fuzz_out [--runs 100000] [--seconds 3600] [images] [configs] [manifests]

Each target runs in a process of its own, under atheris (libFuzzer), which looks for inputs that reach new lines. An
input that ends in an uncaught exception, takes longer than 30 seconds or more than 2 GB is kept in the output folder,
and the exit code is 1.
"""

import argparse
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

TARGETS = {
    "images": ["handclip.datasets.images", "PIL"],
    "configs": ["handclip.config", "yaml"],
    "manifests": ["handclip.datasets", "json"],
}
"""Modules of `fuzz/` with `one`, `seeds`, `TOKENS` and `LONGEST`, and the packages whose lines are looked at."""

SECONDS_AN_INPUT = 30
MEGABYTES = 2048


class Statistics:
    """What has become of the inputs of one target so far."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.out = name, out
        self.inputs = self.accepted = 0
        self.started = time.monotonic()
        self.errors: set[str] = set()
        self.uncaught: dict[str, str] = {}

    def note_error(self, error: Exception) -> None:
        """Count a HandCLIPError by its words, without names and numbers."""
        self.errors.add(re.sub(r"'[^']*'|\\S*/\\S*|[0-9][0-9,.]*", "_", str(error))[:60])

    def note_uncaught(self, error: BaseException, data: bytes) -> None:
        """Keep the first input that ends in this exception at this line."""
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {last.filename}:{last.lineno}"
        if where not in self.uncaught:
            file = self.out / f"crash_{self.name}_{hashlib.sha256(data).hexdigest()[:12]}"
            file.write_bytes(data)
            self.uncaught[where] = f"{file}: {error}"

    def save(self) -> None:
        """Write them where the parent process finds them, also if this one is killed."""
        summary = {
            "target": self.name,
            "inputs": self.inputs,
            "accepted": self.accepted,
            "seconds": round(time.monotonic() - self.started, 1),
            "distinct_errors": len(self.errors),
            "uncaught": self.uncaught,
        }
        (self.out / f"{self.name}.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def fuzz_one_target(name: str, out: Path, runs: int, seconds: float) -> None:
    """Run one target until it has had enough inputs or time; ends the process."""
    import atheris

    with atheris.instrument_imports(include=TARGETS[name]):
        target = importlib.import_module(name)
    from handclip.errors import HandCLIPError

    statistics = Statistics(name, out)

    def feed(data: bytes) -> None:
        try:
            target.one(data)
            statistics.accepted += 1
        except HandCLIPError as error:
            statistics.note_error(error)
        except Exception as error:
            statistics.note_uncaught(error, data)
        statistics.inputs += 1
        enough = statistics.inputs >= runs or time.monotonic() - statistics.started > seconds
        if enough or statistics.inputs % 1000 == 0:
            statistics.save()
        if enough:
            os._exit(1 if statistics.uncaught else 0)  # libFuzzer would go on

    atheris.Setup(
        [
            name,
            f"-timeout={SECONDS_AN_INPUT}",
            f"-rss_limit_mb={MEGABYTES}",
            f"-max_len={target.LONGEST}",
            "-seed=1",
            "-verbosity=0",
            f"-artifact_prefix={out}/killed_{name}_",
            f"-dict={write_dictionary(target, out / f'{name}.dict')}",
            str(write_seeds(target, out / f"corpus_{name}")),
        ],
        feed,
    )
    atheris.Fuzz()


def write_seeds(target: ModuleType, folder: Path) -> Path:
    """Write a target's seeds, one a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (folder / f"seed_{number:03}").write_bytes(seed)
    return folder


def write_dictionary(target: ModuleType, file: Path) -> Path:
    """Write a target's tokens as libFuzzer reads them."""
    lines = ('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in target.TOKENS)
    file.write_text("".join(lines), encoding="ascii")
    return file


def summary_of(name: str, out: Path, exit_code: int) -> dict[str, Any]:
    """Read what a target's process has left."""
    file = out / f"{name}.json"
    summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"inputs": 0}
    killed = sorted(str(path) for path in out.glob(f"killed_{name}_*"))
    ended_by_itself = file.is_file() and exit_code == (1 if summary["uncaught"] else 0)
    summary["killed"] = killed or ([] if ended_by_itself else [f"exit code {exit_code}"])
    return summary


def main() -> int:
    """Run the targets one after the other and print a table."""
    parser = argparse.ArgumentParser(description="Give the readers damaged and hostile inputs.")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], metavar="target", help=", ".join(TARGETS))
    parser.add_argument("--out", type=Path, default=Path("fuzz_out"))
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each target")
    parser.add_argument("--seconds", type=float, default=3600, help="for each target, whatever the number of inputs")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.alone:
        fuzz_one_target(options.targets[0], options.out, options.runs, options.seconds)
    summaries = []
    for name in options.targets or TARGETS:
        for left in (*options.out.glob(f"killed_{name}_*"), *options.out.glob(f"{name}.json")):
            left.unlink()
        command = [sys.executable, __file__, name, "--alone", "--out", str(options.out)]
        command += ["--runs", str(options.runs), "--seconds", str(options.seconds)]
        with (options.out / f"{name}.log").open("wb") as log:
            process = subprocess.run(command, stdout=log, stderr=log, check=False)
        summaries.append(summary_of(name, options.out, process.returncode))
    (options.out / "fuzz.json").write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")
    print(f"{'target':<10}{'inputs':>10}{'accepted':>10}{'seconds':>9}{'distinct errors':>17}{'uncaught':>10}")
    for name, summary in zip(options.targets or TARGETS, summaries, strict=True):
        bad = len(summary.get("uncaught", {})) + len(summary["killed"])
        print(
            f"{name:<10}{summary['inputs']:>10,}{summary.get('accepted', 0):>10,}{summary.get('seconds', 0):>9,.0f}"
            f"{summary.get('distinct_errors', 0):>17,}{bad:>10,}"
        )
        for where, what in summary.get("uncaught", {}).items():
            print(f"  {where}: {what}")
        for what in summary["killed"]:
            print(f"  too slow, too large or dead: {what}; see {options.out / name}.log")
    return 1 if any(summary.get("uncaught") or summary["killed"] for summary in summaries) else 0


if __name__ == "__main__":
    raise SystemExit(main())
