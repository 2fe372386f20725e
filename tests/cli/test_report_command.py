"""`handclip report`, `project` and `explain` on a small real study, and with parts of it missing."""

import csv
import html
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import seal
from quick_figures import save_dots
from tiny_study import baseline_config, make_hands, make_manifests, metrics_without_time, tiny_config

from handclip.report import report
from handclip.runs.evaluate import evaluate
from handclip.runs.train import train

Handclip = Callable[..., Any]
SECTIONS = ["verdict", "training", "retrieval", "embedding", "attention", "biometric", "groups", "provenance"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline, stage 1 and a CNN, evaluated; copy the folder before changing it."""
    base = tmp_path_factory.getbasetemp()
    manifests = make_manifests(base)
    assert make_hands(base).is_dir()
    place = tmp_path_factory.mktemp("finished")
    where = {key: str(place / name) for key, name in (("output_dir", "train_logs"), ("save_dir", "saved_models"))}
    where["eval_dir"] = str(place / "eval_logs")
    evaluate(baseline_config(manifests, experiment="stage0", **where))
    for model, losses in (("vit_small", ["cross_entropy"]), ("mbanet_small", ["cross_entropy", "triplet"])):
        config = tiny_config(
            manifests, experiment="stage1", model=model, losses=[{"type": name} for name in losses], **where
        )
        train(config)
        evaluate(config)
    return place


@pytest.fixture
def study(finished: Path, here: Path) -> Iterator[Path]:
    shutil.copytree(finished, here / "study")
    yield here / "study"


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn, which takes most of the time; each file holds one dot."""
    save_dots(monkeypatch)


def section(page: Path, name: str) -> str:
    found = re.search(rf'<section[^>]*id="{name}".*?</section>', page.read_text(encoding="utf-8"), re.S)
    assert found, f"no section {name}"
    return found[0]


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r'"data:[^"]*"', "", page)).split())


def test_the_report_of_a_study(study: Path, handclip: Handclip, here: Path) -> None:
    answer = handclip("report", study, "--out", "report")
    assert answer.code == 0, answer.err
    page = here / "report" / "report.html"
    assert f"Report: {Path('report') / 'report.html'}" in answer.out
    for name in SECTIONS:
        assert "could not be made" not in section(page, name)
        assert "<img" in section(page, name) or name in ("verdict", "provenance")
    record = json.loads((here / "report" / "report.json").read_text())
    written = {str(path.relative_to(here / "report")) for path in (here / "report").rglob("*") if path.is_file()}
    assert written == {*record["files"], "report.html", "report.json"}
    figures = [name for name in written if name.startswith("figures/")]
    assert {Path(name).stem for name in figures if name.endswith(".png")} == {
        Path(name).stem for name in figures if name.endswith(".svg")
    }
    assert len(figures) >= 20
    with (here / "report" / "tables" / "evaluation.csv").open() as file:
        assert {row["run"] for row in csv.DictReader(file)} == {path.name for path in (study / "eval_logs").iterdir()}


def test_the_commands_on_the_page_make_the_runs_again(
    study: Path, handclip: Handclip, here: Path, quick_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert handclip("report", study, "--out", "report").code == 0
    commands = re.search(r"<code>(handclip .*?)</code>", section(here / "report" / "report.html", "provenance"), re.S)
    assert commands
    monkeypatch.chdir(study)
    for line in html.unescape(commands[1]).splitlines():
        answer = handclip(*shlex.split(line)[1:])
        assert answer.code == 0, answer.err
    for before in sorted(Path("eval_logs").glob("*/metrics.json")):
        after = Path("again") / before
        assert metrics_without_time(after)["results"] == metrics_without_time(before)["results"]


def test_the_same_files_give_the_same_report(study: Path, handclip: Handclip, here: Path) -> None:
    for out in ("one", "two"):
        assert handclip("report", study, "--out", out).code == 0
    for path in sorted((here / "one").rglob("*.*")):
        if path.parent.name in ("figures", "tables"):
            assert path.read_bytes() == (here / "two" / path.relative_to(here / "one")).read_bytes(), path.name


def test_a_second_report_leaves_nothing_of_the_first(
    study: Path, handclip: Handclip, here: Path, quick_figures: None
) -> None:
    assert handclip("report", study, "--out", "report").code == 0
    stray, note = here / "report" / "figures" / "old.png", here / "report" / "notes.txt"
    stray.touch()
    note.touch()
    record = here / "report" / "report.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "files": [*content["files"], "figures/old.png", "../study", "notes.txt"]}))
    assert handclip("report", study, "--out", "report").code == 0
    assert not stray.exists()
    assert note.exists() and study.exists()


def test_without_photographs_all_but_the_pictures_stands(
    study: Path, handclip: Handclip, here: Path, monkeypatch: pytest.MonkeyPatch, quick_figures: None
) -> None:
    for path in study.glob("eval_logs/*/manifest_*.json"):
        value = path.read_text()
        root = re.search(r'"root": "([^"]*)"', value)
        assert root
        path.write_text(value.replace(root[0], f'"root": "{here / "nowhere"}"'))
        seal(path.parent)
    answer = handclip("report", study, "--out", "report")
    assert answer.code == 0, answer.err
    page = here / "report" / "report.html"
    assert "not on this machine" in text_of(section(page, "retrieval"))
    for name in SECTIONS:
        assert "could not be made" not in section(page, name)
    assert "<img" in section(page, "attention")


def test_photographs_can_be_left_out(study: Path, handclip: Handclip, here: Path, quick_figures: None) -> None:
    answer = handclip("report", study, "--out", "report", "--no-photographs")
    assert answer.code == 0, answer.err
    page = here / "report" / "report.html"
    assert "left out, as was asked for" in text_of(section(page, "retrieval"))
    assert "left out, as was asked for" in text_of(section(page, "attention"))
    assert "<img" not in section(page, "attention")


def test_a_run_on_all_aspects_beside_one_on_a_single_one(
    study: Path, handclip: Handclip, here: Path, quick_figures: None, manifests: Path
) -> None:
    """What is shown of both is the aspect that they share."""
    evaluate(baseline_config(manifests, experiment="everything", aspect="all", eval_dir=str(study / "eval_logs")))
    answer = handclip("report", study, "--out", "report")
    assert answer.code == 0, answer.err
    page = here / "report" / "report.html"
    for name in SECTIONS:
        assert "could not be made" not in section(page, name)
    with (here / "report" / "tables" / "groups.csv").open() as file:
        searches: dict[str, int] = {}
        for row in csv.DictReader(file):  # everybody comes first
            searches.setdefault(row["run"], int(row["searches"]))
    assert len(searches) == 4
    assert len(set(searches.values())) == 1


def test_a_fault_in_one_section_leaves_the_others(
    study: Path, handclip: Handclip, here: Path, quick_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("nothing to divide")

    sections = [(name, fail if name == "groups" else make) for name, make in report._SECTIONS]
    monkeypatch.setattr(report, "_SECTIONS", sections)
    answer = handclip("report", study, "--out", "report")
    assert answer.code == 1
    assert answer.err.splitlines()[-1] == (
        "Error: report/report.html was written, but not all of it is sound: the part For whom it works could not be "
        "made: A fault of HandCLIP's own, which its developers would like to hear of: ZeroDivisionError: nothing to "
        "divide"
    )
    page = here / "report" / "report.html"
    assert "ZeroDivisionError" in text_of(section(page, "groups"))
    assert "<img" in section(page, "biometric")


def test_an_evaluation_of_an_older_version_is_reported_as_far_as_it_goes(
    study: Path, handclip: Handclip, here: Path, quick_figures: None
) -> None:
    kept = {"metrics.json", "per_query.csv", "per_split.csv", "cost.json", "eval.log"}
    for path in study.glob("eval_logs/*/*"):
        if path.name not in kept:
            path.unlink()
    answer = handclip("report", study, "--out", "report")
    assert answer.code == 0, answer.err
    page = here / "report" / "report.html"
    assert "Rank-1" in text_of(section(page, "verdict"))
    assert "<img" in section(page, "training")
    for name in ("embedding", "attention", "biometric", "groups"):
        assert "valuate" in text_of(section(page, name)), name
        assert "<img" not in section(page, name), name


@pytest.mark.parametrize(
    "name", ["features.safetensors", "manifest_dorsal_r.json", "explanations.safetensors", "attributes.csv"]
)
def test_one_damaged_file_costs_its_own_part_only(
    study: Path, handclip: Handclip, here: Path, name: str, quick_figures: None
) -> None:
    for path in study.glob(f"eval_logs/*/{name}"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    answer = handclip("report", study, "--out", "report")
    assert answer.code == 1
    last = answer.err.splitlines()[-1]
    assert last.startswith(f"Error: report/report.html was written, but not all of it is sound: {study}/eval_logs/")
    assert f"/{name}: is damaged" in last
    assert last.endswith("handclip evaluate CONFIG --overwrite; and 2 more, which report.json lists")
    faults = json.loads((here / "report" / "report.json").read_text())["faults"]
    assert sorted(Path(fault.split(": ")[0]) for fault in faults) == sorted(study.glob(f"eval_logs/*/{name}"))
    page = text_of((here / "report" / "report.html").read_text())
    assert f"Not all of this report is sound: {html.escape(faults[0])}" in page


def test_training_records_that_are_gone(study: Path, handclip: Handclip, here: Path, quick_figures: None) -> None:
    shutil.rmtree(study / "train_logs")
    for path in study.glob("eval_logs/*/cost.json"):
        content = json.loads(path.read_text())
        if content["training"] is not None:
            content["training"]["file"] = "nowhere/train_logs/run/result.json"
        path.write_text(json.dumps(content))
        seal(path.parent)
    answer = handclip("report", study, "--out", "report")
    assert answer.code == 0, answer.err
    assert "Missing" in section(here / "report" / "report.html", "training")


def test_names_are_not_markup(study: Path, handclip: Handclip, here: Path, quick_figures: None) -> None:
    for path in study.glob("eval_logs/*/metrics.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "model": "<script>alert(1)</script>"}))
        seal(path.parent)
    assert handclip("report", study, "--out", "report").code == 0
    assert "<script>alert" not in (here / "report" / "report.html").read_text()


def test_nothing_to_report(handclip: Handclip, here: Path) -> None:
    answer = handclip("report", here, "--out", "report")
    assert answer.code != 0
    assert "holds no evaluation" in answer.err
    assert not (here / "report").exists()


def test_project_on_its_own(study: Path, handclip: Handclip, here: Path) -> None:
    answer = handclip("project", study, "--out", "projected")
    assert answer.code == 0, answer.err
    assert sorted(path.suffix for path in (here / "projected").rglob("*.*") if path.is_file())
    assert list((here / "projected").rglob("*.png")) and list((here / "projected").rglob("*.csv"))


def test_explain_any_photograph(study: Path, handclip: Handclip, here: Path, hands: Path) -> None:
    photographs = sorted((hands / "Hands").iterdir())[:2]
    for checkpoint in sorted((study / "saved_models").glob("*bs8*[!t].pth")):
        answer = handclip("explain", checkpoint, *photographs, "--out", here / checkpoint.stem)
        assert answer.code == 0, answer.err
        assert len(list((here / checkpoint.stem).rglob("*.png"))) >= 2


def test_explain_what_is_no_photograph(study: Path, handclip: Handclip, here: Path) -> None:
    checkpoint = sorted((study / "saved_models").glob("*.pth"))[0]
    (here / "empty.jpg").touch()
    answer = handclip("explain", checkpoint, "empty.jpg", "--out", "explained")
    assert answer.code != 0
    assert "empty.jpg" in answer.err
    assert not (here / "explained").exists()
