"""Run every benchmark of the CPU and write one table: `make bench`.

Each script runs in a process of its own, one after the other. The table is printed and written to `--out` as Markdown
and as CSV, in files whose names tell hardware and versions. Exit code 1 if a script fails; a target that is missed is
marked in the table and is no failure. A script that fails has a row that says so, below those it had yielded.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import harness
from rich.console import Console

from handclip.files import write_text

HERE = Path(__file__).parent
SCRIPTS = (
    "startup",
    "ranking",
    "reranking",
    "uncertainty",
    "training_input",
    "training_step",
    "training_memory",
    "evaluation",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench_out"), help="folder for the table")
    parser.add_argument("scripts", nargs="*", default=[], metavar="SCRIPT", help=f"of {', '.join(SCRIPTS)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.scripts) - set(SCRIPTS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    rows: list[harness.Row] = []
    failed: list[str] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.scripts or SCRIPTS:
            print(f"[{time.perf_counter() - start:4.0f} s] {name}", file=sys.stderr, flush=True)
            found = Path(folder) / f"{name}.jsonl"
            done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), "--json", str(found)], check=False)
            if found.exists():
                lines = found.read_text(encoding="utf-8").splitlines()
                rows += [harness.Row(**json.loads(line)) for line in lines]
            if done.returncode:
                failed.append(name)
                rows.append(harness.failed_row(name, done.returncode))
    minutes = (time.perf_counter() - start) / 60
    facts = {"date": datetime.now(UTC).date().isoformat(), **harness.machine()}
    title = f"{facts['processor']}, {facts['cores']} cores, torch {facts['torch']}; {minutes:.1f} min"
    Console(width=None if sys.stdout.isatty() else 160).print(harness.table(rows, title))
    # A part of the table must not take the place of the whole one.
    part = "_".join(arguments.scripts)
    path = arguments.out / harness.file_stem(facts, f"cpu_{part}" if part else "cpu")
    command = f"python benchmarks/run.py {' '.join(arguments.scripts)}" if part else "make bench"
    described = ", ".join(
        f"{name} {value}" for name, value in facts.items() if name not in {"date", "processor", "cores"}
    )
    write_text(
        path.with_name(f"{path.name}.md"),
        f"# {facts['processor']}, {facts['cores']} cores\n\n{facts['date']}; {described}. "
        f"All rows took {minutes:.1f} minutes (`{command}`).\n\n{harness.markdown(rows)}",
    )
    write_text(path.with_name(f"{path.name}.csv"), harness.csv_text(rows, facts))
    print(f"Written to {path}.md and .csv")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
