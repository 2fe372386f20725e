"""What the benchmarks share: rows, tables, and the script that runs them all."""

import csv
import importlib
import io
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("harness")


def run(scripts: Path, out: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """Start `run.py` on the scripts of a folder."""
    start = "import sys, pathlib, run; run.HERE = pathlib.Path(sys.argv.pop(1)); run.main()"
    command = [sys.executable, "-c", start, str(scripts), "--out", str(out), *names]
    search = {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | search)


def written(out: Path) -> tuple[str, list[dict[str, str]]]:
    (markdown,), (table,) = out.glob("*.md"), out.glob("*.csv")
    return markdown.read_text(encoding="utf-8"), list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))


def test_a_row_of_every_kind_survives_json_markdown_and_csv(harness: ModuleType) -> None:
    rows = [
        harness.speedup_row("a", "b", reference_seconds=10.0, seconds=1.0, target=9, note="x | y"),
        harness.speedup_row("a", "b", reference_seconds=np.float64(4), seconds=np.float64(1), target=9, extra_mib=12.5),
        harness.speedup_row("a", "b", reference_seconds=3.0, seconds=1.0, same_work="equal"),
        harness.Row("memory", "", "under 1 GB", "0.5 GB", np.float64(0.5) < 1, extra_mib=np.float32(500)),
        harness.failed_row("ranking", 1),
    ]
    assert [harness.Row(**json.loads(json.dumps(asdict(row)))) for row in rows] == rows
    assert [row.verdict for row in rows] == ["met", "MISSED", "-", "met", "MISSED"]
    lines = harness.markdown(rows).splitlines()
    assert [len(line.replace("x | y", "").split("|")) for line in lines] == [10] * (2 + len(rows))
    assert "x / y" in lines[2]
    table = list(csv.DictReader(io.StringIO(harness.csv_text(rows, {"cores": "2"}))))
    assert [row["verdict"] for row in table] == [row.verdict for row in rows]
    assert {row["cores"] for row in table} == {"2"}
    assert table[4]["result"] == "failed"


def test_a_row_refuses_what_json_cannot_hold_or_a_field_is_not(harness: ModuleType) -> None:
    whole = {"what": "", "reference": "", "target": "", "result": "", "met": None}
    wrong = [("met", 1), ("met", np.float64(1)), ("seconds", np.ones(1)), ("extra_mib", True), ("note", None)]
    for name, value in [*wrong, ("reference_seconds", "1"), ("result", 2.0)]:
        with pytest.raises(TypeError, match=f"{name} of a row must be "):
            harness.Row(**whole | {name: value})


def test_a_proof_that_fails_stops_even_without_assertions() -> None:
    command = "import harness; harness.require([], 'three means are equal')"
    done = subprocess.run(
        [sys.executable, "-O", "-c", command], check=False, capture_output=True, text=True, cwd=BENCHMARKS
    )
    assert done.returncode == 1
    assert "AssertionError: three means are equal" in done.stderr


def test_a_script_that_fails_is_in_the_table_after_its_rows(tmp_path: Path) -> None:
    scripts = {
        "startup": "yield Row('first', '', '', '1', None); raise SystemExit(3)",
        "ranking": "yield Row('second', '', '', '2', None)",
    }
    for name, body in scripts.items():
        text = f"from harness import Row, main\ndef rows():\n    {body}\nmain(rows)\n"
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    done = run(tmp_path, tmp_path / "out", "startup", "ranking")
    assert done.returncode == 1
    assert "Failed: startup" in done.stderr
    markdown, table = written(tmp_path / "out")
    assert [(row["what"], row["result"], row["verdict"]) for row in table] == [
        ("first", "1", "-"),
        ("startup.py", "failed", "MISSED"),
        ("second", "2", "-"),
    ]
    assert "| startup.py |  |  | failed | MISSED |" in markdown


def test_start_up_is_measured_for_real(tmp_path: Path) -> None:
    done = run(BENCHMARKS, tmp_path, "startup")
    assert done.returncode == 0, done.stderr
    markdown, (row,) = written(tmp_path)
    assert row["what"] == "start-up: handclip --help"
    assert float(row["seconds"]) > float(row["reference_seconds"]) > 0
    assert row["processor"] in markdown


def test_there_is_no_other_benchmark(tmp_path: Path) -> None:
    done = run(BENCHMARKS, tmp_path, "guesswork")
    assert done.returncode == 2
    assert "there is no benchmark guesswork" in done.stderr


@pytest.mark.parametrize("name", ["vit_small", "rn_small", "mbanet_small", "resnet_small"])
def test_the_sizes_that_are_documented_are_those_of_the_models(name: str, harness: ModuleType) -> None:
    _, pixels, millions, gflops, *embeddings = importlib.import_module("model_sizes").size_line(name).split()
    table = (BENCHMARKS.parent / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    cells = next([cell.strip() for cell in line.split("|")] for line in table if line.startswith(f"| `{name}` |"))
    assert (cells[2], cells[4], cells[5]) == (pixels, millions, f"{float(gflops):.1f}")
    for embedding, dims in zip(embeddings[::2], embeddings[1::2], strict=True):
        size = dims.removesuffix(",")
        assert f"`{embedding}` {size}" in cells[3] or f"{size} each" in cells[3]
        assert f"`{embedding}`" in cells[3]
