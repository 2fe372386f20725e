"""`evaluate`, `compare`, `report`, `project` and `audit` on results that are possible and of no use."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from quick_figures import save_dots
from tiny_study import HANDS, baseline_values, read_table, tiny_values, write_config

from handclip.datasets.manifest import Manifest
from handclip.datasets.prepare import prepare
from handclip.report import report_writer
from handclip.report.figures.style import FigureFiles
from handclip.retrieval.features import Embedder
from handclip.synthetic import generate

Handclip = Callable[..., Any]
FIGURES = {
    *("scores", "losses", "validation", "learning_rates"),
    *("cmc", "rank_lists", "confused_pairs", "embedding_space", "attention"),
    *("score_densities", "det_roc", "open_set", "reliability", "groups", "groups_of_runs"),
}


def collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every model see the same in all images."""

    def all_alike(*arguments: Any, **options: Any) -> Any:
        return {flip: np.broadcast_to(rows[:1], rows.shape) for flip, rows in embed(*arguments, **options).items()}

    embed = Embedder.embed
    monkeypatch.setattr(Embedder, "embed", all_alike)


def draw_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay every figure out, in which numbers of no use could fail, and save a dot."""
    save_dots(monkeypatch)
    save_dot = report_writer.save_figure

    def draw(figure: Figure, folder: Path, name: str) -> FigureFiles:
        figure.draw_without_rendering()
        return save_dot(figure, folder, name)

    monkeypatch.setattr(report_writer, "save_figure", draw)


def require_that_intervals_hold_their_values(folder: Path) -> int:
    """Check every interval in the tables and the comparison below a folder; return how many there are."""
    rows: list[dict[str, Any]] = [row for path in folder.rglob("*.csv") for row in read_table(path)]
    for path in folder.rglob("comparison.json"):
        for block in json.loads(path.read_text())["blocks"]:
            rows += [score for row in block["rows"] for score in row["scores"].values()] + block["differences"]
    found = 0
    for row in rows:
        for prefix in [key.removesuffix("low") for key in row if key.endswith("low")]:
            if prefix + "high" in row and row[prefix + "low"] not in ("", None):
                value = next(row[one] for one in (prefix[:-1], f"{prefix}mean", "difference") if one in row)
                assert float(row[prefix + "low"]) <= float(value) <= float(row[prefix + "high"]), row
                found += 1
    return found


def make(handclip: Handclip, *calls: tuple[Any, ...]) -> None:
    """Run commands that succeed: train and evaluate experiments, and make all of them that there is to make."""
    every = [(command, "eval_logs", "--out", command) for command in ("compare", "report", "project")]
    for call in (*calls, *every, ("audit", "eval_logs")):
        answer = handclip(*call)
        assert answer.code == 0, answer.err


def test_a_collapsed_model_is_evaluated_compared_and_reported(
    manifests: Path, here: Path, handclip: Handclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapse(monkeypatch)
    draw_dots(monkeypatch)
    every = {"aspect": "all", "num_splits": 3}
    trained = write_config(here / "trained.yml", tiny_values(manifests, model="resnet_small", epochs=1, **every))
    baseline = write_config(here / "baseline.yml", baseline_values(manifests, **every))
    make(handclip, ("train", trained), ("evaluate", trained), ("evaluate", baseline))
    record = json.loads((here / "report" / "report.json").read_text())
    assert record["faults"] == []
    figures = {Path(name).stem for name in record["files"] if name.startswith("figures/")}
    assert figures == FIGURES
    assert not re.search(r"\de-\d", page_text(here / "report" / "report.html"))  # rounding is shown as 0
    assert require_that_intervals_hold_their_values(here) > 100


def page_text(page: Path) -> str:
    shown = re.sub(
        r'<style.*?</style>|<script.*?</script>|"data:[^"]*"', "", page.read_text(encoding="utf-8"), flags=re.S
    )
    return " ".join(re.sub(r"<[^>]+>", " ", shown).split())


def of_few_people(here: Path, identities: int) -> Path:
    """Manifests of so few people in 11k Hands' layout that half of them, who are tested, are hardly any."""
    prepare("11k", generate(here / "few_hands", replace(HANDS, identities=identities)), here / "few")
    return here / "few"


def test_two_people_in_one_draw_after_one_epoch(
    here: Path, handclip: Handclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_dots(monkeypatch)
    manifests = of_few_people(here, 4)
    trained = write_config(here / "trained.yml", tiny_values(manifests, num_splits=1, epochs=1, batch_size=4))
    baseline = write_config(here / "baseline.yml", baseline_values(manifests, num_splits=1))
    make(handclip, ("train", trained), ("evaluate", trained), ("evaluate", baseline))
    comparison = (here / "compare" / "comparison.md").read_text()
    assert "· 1 draw ·" in comparison
    assert "Percent of the 4 queries of the draw. One draw has no ±. [..]" in comparison
    assert "± 0.0" not in comparison
    assert {row["rank1_std"] for row in read_table(here / "compare" / "comparison.csv")} == {""}
    text = page_text(here / "report" / "report.html")
    assert "tested by 4 searches for 2 people in one draw of the gallery" in text
    assert "corrected for 1 pair of runs" in text
    assert "one pair of people is among them" in text
    assert "an FMR needs at least 30 pairs of people, there is one" in text
    assert not re.search(r"\b1 (draws|pairs|runs|different|threads)\b|\bnan\b|-0\.0\b", text)


@pytest.mark.parametrize("command", ["compare", "report"])
def test_an_evaluation_of_one_person_is_said_to_be_too_few(command: str, here: Path, handclip: Handclip) -> None:
    assert handclip("evaluate", write_config(here / "one.yml", baseline_values(of_few_people(here, 2)))).code == 0
    answer = handclip(command, "eval_logs", "--out", "out")
    assert answer.code == 1
    assert "per_query.csv: gallery, flip none: only one person in the gallery is searched for" in answer.err
    assert "leave this evaluation out" in answer.err


def test_an_aspect_in_which_nobody_can_be_found_is_refused_before_images_are_read(
    manifests: Path, here: Path, handclip: Handclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "some").mkdir()
    for path in manifests.glob("manifest_*.json"):
        manifest = Manifest.load(path)
        if manifest.aspect == "palmar_l":
            first, second, *others = manifest.draws
            gone = manifest.images[second.gallery[0]].identity
            alone = tuple(index for index in second.query if manifest.images[index].identity == gone)
            manifest = replace(
                manifest, draws=(first, replace(second, query=alone, gallery=second.gallery[1:]), *others)
            )
        manifest.save(here / "some" / path.name)
    monkeypatch.setattr(Embedder, "embed", lambda *_, **__: pytest.fail("images were read"))
    answer = handclip("evaluate", write_config(here / "some.yml", baseline_values(here / "some", aspect="all")))
    assert answer.code == 1
    assert "11k palmar_l cannot be evaluated: in draw 2, gallery has no image of anybody who is searched" in answer.err
    assert not list(here.glob("eval_logs/*/*"))
