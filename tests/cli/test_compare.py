import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_runs import write_run
from tiny_study import baseline_values, tiny_values, write_config

from handclip.report import report

Handclip = Callable[..., Any]
NAMES = {"comparison.md", "comparison.csv", "comparison.tex", "comparison.json", "differences.csv"}


def test_runs_are_compared_printed_and_written(handclip: Handclip, here: Path) -> None:
    write_run(here / "eval_logs" / "one", checksums=True, skill=0.2, stage="0")
    write_run(here / "eval_logs" / "two", checksums=True, skill=0.8)
    answer = handclip("compare", "eval_logs/one", "eval_logs/two/metrics.json", "--out", "out")
    assert (answer.code, answer.err) == (0, "")
    assert {path.name for path in (here / "out").iterdir()} == NAMES
    assert "Written to out/: comparison.md" in answer.out
    assert answer.out.count("flip: sum") == 2
    assert "flip: none" not in answer.out
    assert "\nBlocks 1 and 3 are in the files; --all shows them here.\n" in answer.out
    blocks = json.loads((here / "out" / "comparison.json").read_text())["blocks"]
    assert [row["files"]["metrics"] for row in blocks[0]["rows"]] == [
        "eval_logs/one/metrics.json",
        "eval_logs/two/metrics.json",
    ]
    for row in blocks[1]["rows"]:
        assert f"{100 * row['scores']['rank1']['mean']:.1f} ± " in answer.out

    everything = handclip("compare", "eval_logs", "--out", "out", "--all", "--published")
    assert everything.code == 0
    assert "flip: none" in everything.out
    assert "MBA-Net" in everything.out
    assert "An artefact" in everything.out


def test_a_run_that_two_studies_share_is_taken_once_and_one_without_metrics_is_named(
    handclip: Handclip, here: Path
) -> None:
    write_run(here / "first" / "shared", luck=1)
    write_run(here / "second" / "shared", luck=1)
    write_run(here / "second" / "own", luck=2)
    write_run(here / "second" / "lost", luck=3)
    (here / "second" / "lost" / "metrics.json").unlink()
    answer = handclip("compare", "first", "second", "--out", "out")
    assert answer.code == 0, answer.err
    assert "second/shared holds the same as first/shared; it is taken once." in answer.err
    assert "Left out: second/lost holds per_query.csv but no metrics.json" in answer.err
    blocks = json.loads((here / "out" / "comparison.json").read_text())["blocks"]
    assert [row["run"] for row in blocks[0]["rows"]] == ["own", "shared"]


def test_what_cannot_be_compared_is_one_message(handclip: Handclip, here: Path) -> None:
    answer = handclip("compare", "eval_logs", "--out", "out")
    assert (answer.code, answer.out, answer.err) == (1, "", "Error: eval_logs: no such file or folder\n")
    assert not (here / "out").exists()
    write_run(here / "eval_logs" / "one")
    (here / "file").write_text("")
    assert "file is not a folder" in handclip("compare", "eval_logs", "--out", "file").err
    assert handclip("compare", "--out", "out").code == 2


@pytest.mark.parametrize("command", ["compare", "report"])
def test_runs_on_different_manifests_are_refused_unless_that_is_asked_for(
    command: str, handclip: Handclip, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_SECTIONS", ())
    write_run(here / "eval_logs" / "mine", checksums=True)
    write_run(here / "eval_logs" / "hers", checksums=True, manifest_sha256="f" * 64, luck=1)
    answer = handclip(command, "eval_logs", "--out", "out")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.splitlines()[1:4] == [
        "  11k dorsal_r",
        "    manifest ffffffff: eval_logs/hers",
        "    manifest 01234567: eval_logs/mine",
    ]
    assert not list(here.glob("out/*"))
    answer = handclip(command, "eval_logs", "--out", "out", "--different-manifests")
    assert answer.code == 0
    assert "so they are in blocks of their own and are not compared with each other" in answer.err
    assert list(here.glob("out/*"))
    assert handclip(command, "eval_logs/mine", "--out", "alone").code == 0


def test_what_train_and_evaluate_write_can_be_compared(handclip: Handclip, manifests: Path, here: Path) -> None:
    write_config(here / "baseline.yml", baseline_values(manifests))
    write_config(here / "trained.yml", tiny_values(manifests, epochs=1))
    assert handclip("train", "trained.yml").code == 0
    for config in ("baseline.yml", "trained.yml"):
        assert handclip("evaluate", config).code == 0
    answer = handclip("compare", ".", "--out", "out")
    assert (answer.code, answer.err) == (0, "")
    rows = json.loads((here / "out" / "comparison.json").read_text())["blocks"][0]["rows"]
    assert [(row["stage"], row["losses"]) for row in rows] == [("0", []), ("1", ["cross_entropy"])]
    for path in rows[1]["files"].values():
        assert Path(path).is_file()
    assert rows[1]["cost"]["training_seconds"] == json.loads(Path(rows[1]["files"]["training"]).read_text())["seconds"]
    assert "gallery_all" in answer.out
