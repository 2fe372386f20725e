"""`handclip study` from its file to its comparison."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Handclip, changes
from tiny_study import LOSSES, tiny_values

from handclip import studies
from handclip.report.report import ReportFiles


@pytest.fixture
def study_file(manifests: Path, here: Path) -> Path:
    """Two models through all stages, in seconds."""
    stage_only = {"experiment", "model", "dataset", "aspect", "epochs", "lr"}
    study = {
        "study": "tiny",
        "models": {"vit_small": None, "resnet_small": {"neck": "bnneck", "losses": ["ce"]}},
        "data": [{"dataset": "11k", "aspects": ["dorsal_r"]}],
        "losses": {name: LOSSES[name] for name in ("ce", "ce_triplet")},
        "common": {key: value for key, value in tiny_values(manifests).items() if key not in stage_only},
        "stage0": {"experiment": "stage0"},
        "stage1": {"experiment": "stage1", "epochs": 1, "lr": 0.001},
        "stage2": {"experiment": "stage2", "epochs": 1, "lr": 0.0005},
    }
    path = here / "tiny.yml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def listed(out: str) -> list[tuple[str, str, str]]:
    """Stage, model and state of each row of the dry run's table."""
    rows = [line.split() for line in out.splitlines() if re.match(r"\s*\d+\s+[012]\s", line)]
    return [(row[1], row[2], "to do" if row[-2:] == ["to", "do"] else row[-1]) for row in rows]


PLAN = [*((stage, "vit_small") for stage in "0122"), *((stage, "resnet_small") for stage in "012")]


@pytest.mark.slow
def test_d56_a_study_runs_what_its_dry_run_listed(study_file: Path, handclip: Handclip, here: Path) -> None:
    dry = handclip.ok("study", study_file, "--dry-run")
    assert listed(dry.out) == [(*run, "to do") for run in PLAN]
    assert "5 epochs to train" in dry.out
    assert not (here / "studies").exists()

    answer = handclip.ok("study", study_file)
    assert "[7/7] stage 2, resnet_small: ce; 11k dorsal_r, seed 0" in answer.err
    out = here / "studies" / "tiny"
    for name in ("comparison.md", "comparison.csv", "comparison.tex", "comparison.json", "differences.csv"):
        assert (out / name).is_file()
        assert name in answer.out
    record = json.loads((out / "study.json").read_text())
    # The dry run listed what was run: the same runs, in the same order.
    assert [(run["stage"], run["model"], run["state"]) for run in record] == [(*run, "done") for run in PLAN]
    assert {path.name for path in (out / "eval_logs").iterdir()} == {run["run"] for run in record}
    assert len(list((out / "saved_models").glob("*[!t].pth"))) == 5
    assert all((out / "eval_logs" / run["run"] / "eval.log").is_file() for run in record)
    assert listed(handclip("study", study_file, "--dry-run").out) == [(*run, "done") for run in PLAN]

    models = {path: path.stat().st_mtime_ns for path in (out / "saved_models").iterdir()}
    comparison = (out / "comparison.json").read_bytes()
    again = handclip.ok("study", study_file)
    assert again.err.count("has already ended") == 5
    assert {path: path.stat().st_mtime_ns for path in (out / "saved_models").iterdir()} == models
    assert (out / "comparison.json").read_bytes() == comparison


@pytest.mark.promise("damaged-report")
@pytest.mark.slow
def test_a_study_ends_with_its_report(
    study_file: Path, handclip: Handclip, here: Path, with_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = handclip.ok("study", study_file, "--only", "vit_small")
    page = Path("studies/tiny/report/report.html")
    assert f"Report: {page}" in answer.out
    assert page.is_file()

    # What goes wrong with the report costs neither the comparison nor the exit code its meaning.
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no room")

    monkeypatch.setattr(studies, "report_evaluations", fail)
    answer = handclip("study", study_file, "--only", "vit_small")
    assert answer.code == 1
    assert "the report could not be made: ValueError: no room" in answer.err
    assert "comparison.md" in answer.out

    files = ReportFiles(page, [], [], ["train_logs/a/metrics.csv: is damaged"])
    monkeypatch.setattr(studies, "report_evaluations", lambda *_, **__: files)
    answer = handclip("study", study_file, "--only", "vit_small")
    assert answer.code == 1
    assert f"Report: {page}" in answer.out
    assert answer.err.splitlines()[-1] == (
        f"Error: {page} was written, but not all of it is sound: train_logs/a/metrics.csv: is damaged"
    )


def test_d57_a_failing_run_fails_the_command_after_the_others_went_on(
    study_file: Path, handclip: Handclip, here: Path
) -> None:
    values = yaml.safe_load(study_file.read_text())
    # P x K needs more identities than there are: only the triplet variant fails.
    values["models"] = {"vit_small": {"batch_size": 64}}
    study_file.write_text(yaml.safe_dump(values))
    said = handclip.refused("study", study_file, "--out", "out", code=1)
    for part in ("1 of 4 runs failed", "stage 2, vit_small: ce + triplet", "a batch needs 32 identities"):
        assert part in said
    assert (here / "out" / "comparison.md").is_file()
    assert states(here / "out") == ["done", "done", "done", "failed"]


def rows(out: Path) -> list[Any]:
    blocks = json.loads((out / "comparison.json").read_text())["blocks"]
    return [[(row["run"], row["scores"]) for row in block["rows"]] for block in blocks]


def test_a_damaged_evaluation_is_made_again_or_left_out_of_the_comparison(
    study_file: Path, handclip: Handclip, here: Path
) -> None:
    arguments = ("study", study_file, "--only", "resnet_small", "--out")
    handclip.ok(*arguments, "old")
    Path("old").rename("out")  # a study moves
    assert handclip.ok(*arguments, here / "out").err.count("has already ended") == 2
    more = handclip.ok(*arguments, "out", "--set", "seeds=[0, 1]", "--dry-run")  # and grows
    assert [state for _, _, state in listed(more.out)] == ["done"] * 3 + ["to do"] * 3

    whole = rows(Path("out"))
    [table] = Path("out", "eval_logs").glob("stage1_*/per_query.csv")
    table.write_text("damaged")
    assert f"{table}: is damaged or was changed" in handclip.ok(*arguments, "out").err
    assert rows(Path("out")) == whole
    # Without its model it cannot be made again, which costs the others nothing.
    table.write_text("damaged")
    Path("out", "saved_models", f"{table.parent.name}.pth").unlink()
    said = handclip.refused(*arguments, "out", code=1)
    assert "left out of the comparison:" in said
    assert f"{table}: is damaged or was changed" in said
    assert {len(block) for block in rows(Path("out"))} == {len(whole[0]) - 1}


def test_names_of_its_own_and_places_that_are_not_there(study_file: Path, handclip: Handclip, here: Path) -> None:
    models = "models={plain: {model: mbanet_small}, intended: {model: mbanet_small, relative_position: intended}}"
    arguments = ("study", study_file, "--set", models, "--set", "evaluate_on=[{dataset: hd}]", "--dry-run")
    answer = handclip(*arguments)
    assert [model for _, model, _ in listed(answer.out)] == ["plain"] * 4 + ["intended"] * 4
    assert "datasets/HD is not there, and 6 trainings or evaluations need it." in answer.out
    assert [model for _, model, _ in listed(handclip(*arguments, "--only", "intended").out)] == ["intended"] * 4


def states(out: Path) -> list[str]:
    return [run["state"] for run in json.loads((out / "study.json").read_text())]


def test_what_hangs_on_a_failed_stage_1_is_left_out(study_file: Path, handclip: Handclip, here: Path) -> None:
    missing = changes(models="{vit_small: {pretrained: missing.pt}}", stage0="null")
    said = handclip.refused("study", study_file, "--out", "out", *missing, code=1)
    assert "3 of 3 runs failed" in said
    assert said.count("Left out: it goes on from stage1_vit_small") == 2
    assert not (here / "out" / "comparison.md").exists()
    assert states(here / "out") == ["failed", "left out", "left out"]


def test_cross_domain_evaluations_belong_to_the_comparison(study_file: Path, handclip: Handclip, here: Path) -> None:
    few = changes(models="{vit_small: {}}", stage0="null", losses="{ce: [{type: cross_entropy}]}")
    handclip.ok("study", study_file, "--out", "out", *few, *changes(evaluate_on="[{aspect: palmar_l}]"))
    assert len(list((here / "out" / "eval_logs").iterdir())) == 4
    blocks = json.loads((here / "out" / "comparison.json").read_text())["blocks"]
    assert {block["protocol"]["aspect"] for block in blocks} == {"dorsal_r", "palmar_l"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.yml",), "missing.yml: no such file"),
        (("tiny.yml", "--only", "vit"), "tiny.yml: there is no model 'vit'"),
        (("tiny.yml", "--set", "stage1.epoch=3"), "unknown key 'epoch'"),
        (("tiny.yml", "--set", "models={vit_smal: {}}"), "there is no model 'vit_smal'. Did you mean 'vit_small'"),
        (("tiny.yml", "--set", "models={resnet_small: {quick_gelu: true}}"), "quick_gelu: has no effect on resnet_"),
        (("tiny.yml", "--set", "stages=3"), "unknown key 'stages'"),
    ],
)
def test_a_study_that_cannot_be_planned(
    study_file: Path, handclip: Handclip, here: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in handclip.refused("study", *arguments)
    assert not (here / "studies").exists()
