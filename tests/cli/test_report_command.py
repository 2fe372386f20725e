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
    folders = {"output_dir": "train_logs", "save_dir": "saved_models", "eval_dir": "eval_logs"}
    where = {key: str(place / name) for key, name in folders.items()}
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


class Page:
    """A page that was written, section by section."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = re.finditer(r'<section id="(\w+)".*?</section>', path.read_text(encoding="utf-8"), re.S)
        self.sections = {match[1]: match[0] for match in found}
        assert list(self.sections) == SECTIONS

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.path.parent / "tables" / f"{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def words(self, name: str) -> str:
        text = re.sub(r"<[^>]+>", " ", re.sub(r'"data:[^"]*"', "", self.sections[name]))
        return " ".join(html.unescape(text).split())

    def shows_pictures(self, name: str) -> bool:
        return "<img" in self.sections[name]

    def is_whole(self) -> bool:
        return not any("could not be made" in text for text in self.sections.values())


@pytest.fixture
def report_of(study: Path, handclip: Handclip, here: Path, quick_figures: None) -> Callable[..., Page]:
    def write(*options: str, out: str = "report") -> Page:
        answer = handclip("report", study, "--out", out, *options)
        assert answer.code == 0, answer.err
        return Page(here / out / "report.html")

    return write


def test_the_report_of_a_study_which_the_same_files_give_again(study: Path, handclip: Handclip, here: Path) -> None:
    for out in ("report", "again"):
        answer = handclip("report", study, "--out", out)
        assert answer.code == 0, answer.err
        assert f"Report: {Path(out) / 'report.html'}" in answer.out
    page = Page(here / "report" / "report.html")
    assert page.is_whole()
    assert [name for name in SECTIONS if not page.shows_pictures(name)] == ["verdict", "provenance"]
    record = json.loads((here / "report" / "report.json").read_text())
    written = {path.relative_to(here / "report") for path in (here / "report").rglob("*") if path.is_file()}
    assert {*map(str, written)} == {*record["files"], "report.html", "report.json"}
    figures = {kind: {path.stem for path in written if path.suffix == kind} for kind in (".png", ".svg")}
    assert len(figures[".png"]) >= 10 and figures[".png"] == figures[".svg"]
    assert {row["run"] for row in page.table("evaluation")} == {path.name for path in (study / "eval_logs").iterdir()}
    for path in written - {Path("report.html"), Path("report.json")}:
        assert (here / "report" / path).read_bytes() == (here / "again" / path).read_bytes(), path


def test_the_commands_on_the_page_make_the_runs_again(
    study: Path, handclip: Handclip, report_of: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = re.search(r"<code>(handclip .*?)</code>", report_of().sections["provenance"], re.S)
    assert commands
    monkeypatch.chdir(study)
    for line in html.unescape(commands[1]).splitlines():
        answer = handclip(*shlex.split(line)[1:])
        assert answer.code == 0, answer.err
    for before in sorted(Path("eval_logs").glob("*/metrics.json")):
        after = Path("again") / before
        assert metrics_without_time(after)["results"] == metrics_without_time(before)["results"]


def test_a_second_report_leaves_nothing_of_the_first(study: Path, here: Path, report_of: Callable[..., Page]) -> None:
    report_of()
    stray, note = here / "report" / "figures" / "old.png", here / "report" / "notes.txt"
    stray.touch()
    note.touch()
    record = here / "report" / "report.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "files": [*content["files"], "figures/old.png", "../study", "notes.txt"]}))
    report_of()
    assert not stray.exists()
    assert note.exists() and study.exists()


def test_without_photographs_all_but_the_pictures_stands(
    study: Path, here: Path, report_of: Callable[..., Page]
) -> None:
    page = report_of("--no-photographs", out="left_out")
    for name in ("retrieval", "attention"):
        assert "left out, as was asked for" in page.words(name)
    assert not page.shows_pictures("attention")

    for path in study.glob("eval_logs/*/manifest_*.json"):
        path.write_text(re.sub(r'"root": "[^"]*"', f'"root": "{here / "nowhere"}"', path.read_text()))
        seal(path.parent)
    page = report_of()
    assert "not on this machine" in page.words("retrieval")
    assert page.is_whole() and page.shows_pictures("attention")


def test_a_run_on_all_aspects_beside_one_on_a_single_one(
    study: Path, report_of: Callable[..., Page], manifests: Path
) -> None:
    """What is shown of both is the aspect that they share."""
    evaluate(baseline_config(manifests, experiment="everything", aspect="all", eval_dir=str(study / "eval_logs")))
    page = report_of()
    assert page.is_whole()
    searches: dict[str, int] = {}
    for row in page.table("groups"):  # everybody comes first
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
    page = Page(here / "report" / "report.html")
    assert "ZeroDivisionError" in page.words("groups")
    assert page.shows_pictures("biometric")


def test_what_is_gone_costs_its_own_parts_only(study: Path, report_of: Callable[..., Page]) -> None:
    shutil.rmtree(study / "train_logs")
    for path in study.glob("eval_logs/*/cost.json"):
        content = json.loads(path.read_text())
        if content["training"] is not None:
            content["training"]["file"] = "nowhere/train_logs/run/result.json"
        path.write_text(json.dumps(content))
        seal(path.parent)
    assert "Missing" in report_of().words("training")
    needed = {"metrics.json", "per_query.csv", "per_split.csv", "cost.json", "eval.log"}
    for path in study.glob("eval_logs/*/*"):
        if path.name not in needed:
            path.unlink()
    page = report_of()
    assert "Rank-1" in page.words("verdict")
    assert page.shows_pictures("training")
    for name in ("embedding", "attention", "biometric", "groups"):
        assert "valuate" in page.words(name), name
        assert not page.shows_pictures(name), name


@pytest.mark.promise("damaged-report")
@pytest.mark.parametrize("name", ["features.safetensors", "attributes.csv"])
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
    page = html.unescape((here / "report" / "report.html").read_text())
    assert f"Not all of this report is sound: {faults[0]}" in page


def test_names_are_not_markup(study: Path, report_of: Callable[..., Page]) -> None:
    for path in study.glob("eval_logs/*/metrics.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "model": "<script>alert(1)</script>"}))
        seal(path.parent)
    assert "<script>alert" not in report_of().path.read_text()


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
