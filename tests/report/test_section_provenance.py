import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_runs import MANIFEST, write_run
from section_parts import cells_of, data_of, notes, of_kind, rows_of, the, words

from handclip.locks import holding
from handclip.report.report_writer import Commands, Heading, ReportWriter, Section, Text
from handclip.report.sections.provenance import provenance_section
from handclip.report.table import Table
from handclip.runs.provenance import content_sha256


def environment(**changes: Any) -> dict[str, Any]:
    return {
        "handclip": "0.1.0",
        "commit": "abc123",
        "started": "2026-01-02T03:04:05+00:00",
        "python": "3.11.7",
        "platform": "Linux",
        "threads": 2,
        "device": "NVIDIA H200",
        "processor": "AMD EPYC",
        "cores": 16,
        "precision": "float32",
        "libraries": {"torch": "2.13.0"},
        **changes,
    }


def write_study(study: Path, run: str = "trained", **changes: Any) -> Path:
    """An evaluation with its records, and those of its training beside it."""
    folder = write_run(study / "eval_logs" / run, options={"lr": 0.001, "losses": [{"type": "triplet", "margin": 0.5}]})
    training = study / "train_logs" / run
    training.mkdir(parents=True)
    (training / "result.json").write_text("{}")
    config = {"experiment": "trained", "resume_from": None, **changes}
    for place, record in ((folder, environment()), (training, environment(precision="bfloat16", commit=None))):
        (place / "config.yml").write_text(yaml.safe_dump(config))
        (place / "environment.json").write_text(json.dumps(record))
    return folder


def made(study: Path) -> Section:
    return provenance_section(data_of(study), ReportWriter(study / "out"))


def tables(section: Section, first: str) -> list[Table]:
    """The tables whose first column has a title."""
    return [table for table in of_kind(section, Table) if table.titles[0] == first]


def facts(section: Section) -> dict[str, str]:
    return {cells[0]: cells[1] for cells in cells_of(tables(section, "What")[0])}


def test_a_run_shows_settings_data_code_and_machine_and_no_folder_of_this_machine(tmp_path: Path) -> None:
    write_study(tmp_path / "alice")
    section = made(tmp_path / "alice")
    found = facts(section)
    assert found["lr"] == "0.001"
    assert yaml.safe_load(found["losses"]) == [{"type": "triplet", "margin": 0.5}]
    assert found["seed"] == "0"
    assert found["Manifest"] == MANIFEST
    assert "HandCLIP 0.1.0 (abc123)" in found["Evaluation"]
    assert "bfloat16" in found["Training"]
    for text in ("NVIDIA H200", "AMD EPYC", "16 cores", "2 threads", "Python 3.11.7", "torch 2.13.0", "2026-01-02"):
        assert text in found["Training"]
    assert found["Full config of evaluation"] == "eval_logs/trained/config.yml"
    assert found["Full config of training"] == "train_logs/trained/config.yml"
    assert not notes(section)
    assert str(tmp_path) not in repr([block for block in section.blocks if not isinstance(block, Table)])
    cells = [cell for table in of_kind(section, Table) for line in cells_of(table) for cell in line]
    assert not [cell for cell in cells if str(tmp_path) in cell]
    assert str(tmp_path) not in (tmp_path / "alice" / "out" / "tables" / "provenance.csv").read_text()


def test_commands_of_all_runs_work_in_the_studys_folder(tmp_path: Path) -> None:
    for number in range(6):
        write_study(tmp_path / "study", f"run {number}; rm")
    section = made(tmp_path / "study")
    commands = the(section, Commands)
    assert [shlex.split(line)[:3] for line in commands.lines] == [
        ["handclip", command, f"train_logs/run {number}; rm/config.yml"]
        for number in range(6)
        for command in ("train", "evaluate")
    ]
    # What is there is left as it is.
    for line in commands.lines:
        assert {"output_dir=again/train_logs", "save_dir=again/saved_models"} < set(shlex.split(line))
    assert "Run these in the study's folder" in words(section)


@pytest.mark.parametrize(("name", "again"), [("trained.pth", False), ("trained_last.pth", True)])
def test_a_run_s_last_model_is_evaluated_again_and_not_its_best(tmp_path: Path, name: str, again: bool) -> None:
    write_study(tmp_path / "study", checkpoint=f"saved_models/{name}")
    commands = the(made(tmp_path / "study"), Commands)
    assert [f"checkpoint=again/saved_models/{name}" in line for line in commands.lines] == [False, again]


def test_studies_have_commands_of_their_own(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_study(tmp_path / name, f"run_{name}")
    blocks = made(tmp_path).blocks
    places = [place for place, block in enumerate(blocks) if isinstance(block, Commands)]
    assert [blocks[place - 1] for place in places] == [Text("In first:"), Text("In second:")]
    assert [len(getattr(blocks[place], "lines", ())) for place in places] == [2, 2]


def test_what_differs_between_runs_stands_side_by_side(tmp_path: Path) -> None:
    for name, options in (("a", {"lr": 0.1}), ("b", {"lr": 0.2}), ("c", {"resume_from": "a.pth"})):
        write_run(tmp_path / "eval_logs" / name, options={"epochs": 2, **options})
    write_run(tmp_path / "eval_logs" / "raw", stage="0")
    [_, table] = tables(made(tmp_path), "Run")
    assert table.titles == ["Run", "lr", "resume_from"]
    labels = [run.label for run in data_of(tmp_path).runs if run.row.losses]
    assert cells_of(table) == [[labels[0], "0.1", "-"], [labels[1], "0.2", "-"], [labels[2], "-", labels[0]]]

    # More differences than fit on a page are left to the file.
    for name in ("a", "b"):
        write_run(tmp_path / "more" / "eval_logs" / name, options={f"key{number}": name for number in range(9)})
    assert len(tables(made(tmp_path / "more"), "Run")) == 1


def test_the_file_has_all_runs_and_everything(tmp_path: Path) -> None:
    write_study(tmp_path)
    write_run(tmp_path / "eval_logs" / "bare", stage="0")
    section = made(tmp_path)
    rows = {row["run"]: row for row in rows_of(tmp_path / "out" / "tables" / "provenance.csv")}
    assert rows["trained"]["code"] == "0.1.0"
    assert rows["trained"]["evaluation_code"] == "0.1.0 (abc123)"
    assert rows["trained"]["torch"] == "2.13.0"
    assert (rows["trained"]["training_precision"], rows["trained"]["evaluation_precision"]) == ("bfloat16", "float32")
    assert yaml.safe_load(rows["trained"]["options"])["lr"] == 0.001
    assert rows["bare"]["code"] == rows["bare"]["evaluated"] == ""
    assert rows["bare"]["manifest_sha256"] == MANIFEST
    assert len(cells_of(tables(section, "Run")[0])) == 2
    # A baseline is trained nowhere, so nothing of its training is missing.
    [note] = notes(section, "missing")
    assert note.startswith("Not all of how 1. stage 0 vit_small was evaluated can be shown: ")
    assert note.endswith("config.yml: no such file. Evaluate the run again: handclip evaluate CONFIG --overwrite.")
    headings = [heading.text for heading in of_kind(section, Heading)]
    assert headings == ["To run it again", *(run.label for run in data_of(tmp_path).featured)]


def test_lost_records_of_training_are_told(tmp_path: Path) -> None:
    write_study(tmp_path)
    (tmp_path / "train_logs" / "trained" / "result.json").unlink()
    section = made(tmp_path)
    [note] = notes(section)
    assert "training" in note
    assert "Training" not in facts(section)
    assert [line.split()[1] for line in the(section, Commands).lines] == ["evaluate"]


def test_every_session_of_training_is_shown(tmp_path: Path) -> None:
    write_study(tmp_path)
    training = tmp_path / "train_logs" / "trained"
    content = {"sessions": [{"exit": None}, {"exit": "interrupted by SIGTERM"}, {"exit": "finished"}]}
    (training / "provenance.json").write_text(json.dumps({**content, "sha256": content_sha256(content)}))

    def shown() -> str:
        made(tmp_path)
        [row] = rows_of(tmp_path / "out" / "tables" / "provenance.csv")
        return row["training_sessions"]

    assert shown() == "3: killed (no end was recorded); interrupted by SIGTERM; finished"
    with holding(training):
        assert shown() == "3: under way; interrupted by SIGTERM; finished"
    (training / "provenance.json").write_text(json.dumps({**content, "sha256": "0" * 64}))
    assert shown() == "provenance.json is damaged"
