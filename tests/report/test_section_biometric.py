"""The section on error rates, from made-up scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from section_parts import cells_of, notes, of_kind, pictures, rows_of, the, words

from handclip.metrics.verification import RateEstimate
from handclip.report.figures.style import FigureFiles
from handclip.report.report_data import Search
from handclip.report.report_writer import Heading, Note, Picture, ReportWriter, Section
from handclip.report.sections.biometric import _shown, biometric_section
from handclip.report.table import Table


@dataclass
class MadeRun:
    """What the section reads of a run."""

    number: int
    test: Sequence[Search]
    validation: Sequence[Search]
    style: int | None = 0
    validation_was_trained_on: bool = False
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.number}. stage 1 vit_small ce"

    @property
    def row(self) -> Any:
        return SimpleNamespace(number=self.number, run=f"run{self.number}")

    def searches(self) -> Sequence[Search]:
        return self.test

    def validation_searches(self) -> Sequence[Search]:
        return self.validation


def made_searches(people: int, seed: int, draws: int = 2, first: int = 0) -> list[Search]:
    searches = []
    for split in range(draws):
        rng = np.random.default_rng([seed, split])
        queries, gallery = np.repeat(np.arange(first, first + people), 2), np.arange(first, first + people)
        scores = 0.2 * rng.normal(size=(len(queries), people)) + 0.6 * (queries[:, None] == gallery)
        searches.append(Search("dorsal_r", split, [], [], np.tanh(scores).astype(np.float32), queries, gallery, {}))
    return searches


def made_run(number: int, people: int = 60, **changes: Any) -> MadeRun:
    test, validation = made_searches(people, number), made_searches(people, 100 + number, 1, first=1_000)
    return MadeRun(**{"number": number, "test": test, "validation": validation, "style": number - 1, **changes})


class QuickBook(ReportWriter):
    """Pictures are made and not saved, which takes a second each."""

    def picture(self, name: str, figure: Figure, *, alt: str, caption: str, photographic: bool = False) -> Picture:
        folder = self.folder / "figures"
        return Picture(FigureFiles(folder / f"{name}.png", folder / f"{name}.svg"), alt, caption, photographic)


def section_of(folder: Path, *runs: MadeRun, writer: type[ReportWriter] = QuickBook) -> Section:
    protocol = SimpleNamespace(dataset="11k", aspect="dorsal_r", gallery_images=(60,), flip="sum", draws=2)
    data: Any = SimpleNamespace(
        shown=[run for run in runs if run.style is not None],
        featured=runs[:4],
        best=runs[0],
        block=SimpleNamespace(protocol=protocol),
    )
    return biometric_section(data, writer(folder))


def table(folder: Path, name: str) -> list[dict[str, str]]:
    return rows_of(folder / "tables" / f"{name}.csv")


def test_the_section_holds_every_part(tmp_path: Path):
    section = section_of(tmp_path, made_run(1), made_run(2), writer=ReportWriter)
    assert [heading.text for heading in of_kind(section, Heading)] == [
        "Genuine and impostor scores",
        "Accepting and rejecting",
        "Thresholds fixed beforehand",
        "Open-set identification",
        "Calibration",
    ]
    assert list(pictures(section)) == ["score_densities", "det_roc", "open_set", "reliability"]
    for picture in pictures(section).values():
        assert picture.files.svg.is_file()
        assert len(picture.alt) > 40 and len(picture.caption) > 40
    tables = of_kind(section, Table)
    assert [table.csv.stem for table in tables] == ["verification", "thresholds", "open_set", "calibration"]
    assert all("11k dorsal_r, gallery, flip: sum, 2 draws" in table.caption for table in tables)
    assert "240 genuine and 14,160 impostor comparisons of 60 people" in words(section)
    assert "A similarity is not a probability" in words(section)


def test_tables_show_percent_with_intervals_and_files_hold_fractions(tmp_path: Path):
    section = section_of(tmp_path, made_run(1))
    cells = cells_of(of_kind(section, Table)[0])[0]
    [row] = table(tmp_path, "verification")
    eer, low, high = (float(row[key]) for key in ("eer", "eer_low", "eer_high"))
    assert 0 < low < eer < high < 0.2
    assert cells[:2] == ["1. stage 1 vit_small ce", f"{100 * eer:.1f} ({100 * low:.1f} to {100 * high:.1f})"]
    assert row["run"] == "run1"
    assert 0 < float(row["fnmr_at_fmr_0.1"]) < 1
    assert row["fnmr_at_fmr_0.001"] == ""
    assert cells[3:] == ["not measurable", "not measurable", "not measurable"]
    assert any("an FMR of 0.1 % needs 30,000 pairs of people, there are 1,770" in note for note in notes(section))
    # An FNIR that rests on few people is shown, with a warning.
    cells = cells_of(of_kind(section, Table)[2])[0]
    assert " to " in cells[1]
    assert " to " in cells[2]
    assert cells[3] == "not measurable"
    [warning] = notes(section, "warning")
    assert "of 60, 6 are expected to cause a false alarm" in warning
    assert "Read the interval, not the value" in warning
    # Points of curves below what can be measured are marked.
    for name, rate, lowest in (("det_curves", "fmr", 30 / 1_770), ("open_set_curves", "fpir", 30 / 60)):
        rows = table(tmp_path, name)
        assert {row["measurable"] for row in rows} == {"true", "false"}
        assert all((row["measurable"] == "true") == (float(row[rate]) >= lowest) for row in rows)


def test_thresholds_come_from_validation_scores_alone(tmp_path: Path):
    validation = made_searches(60, 7, 1, first=1_000)
    for name, seed in (("one", 1), ("other", 2)):
        section_of(tmp_path / name, made_run(1, test=made_searches(60, seed), validation=validation))
    one, other = (table(tmp_path / name, "thresholds") for name in ("one", "other"))
    assert [row["fixed_for"] for row in one] == ["EER", "FMR 10 %"]
    assert [row["threshold"] for row in one] == [row["threshold"] for row in other]
    assert [row["fnmr"] for row in one] != [row["fnmr"] for row in other]
    slopes = [table(tmp_path / name, "calibration")[0]["slope"] for name in ("one", "other")]
    assert slopes[0] == slopes[1]


def test_error_rates_at_fixed_thresholds_are_those_of_the_test_scores(tmp_path: Path):
    run = made_run(1)
    section_of(tmp_path, run)
    mated = np.concatenate([(s.query_people[:, None] == s.gallery_people).ravel() for s in run.test])
    scores = np.concatenate([search.scores.ravel() for search in run.test])
    for row in table(tmp_path, "thresholds"):
        accepted = scores >= np.float32(row["threshold"])
        assert float(row["fmr"]) == pytest.approx(accepted[~mated].mean())
        assert float(row["fnmr"]) == pytest.approx((~accepted)[mated].mean())
    # Calibration makes ratios cost less.
    [row] = table(tmp_path, "calibration")
    assert float(row["cllr_min"]) <= float(row["cllr"]) < float(row["cllr_before"])
    predictions = {row["prediction"] for row in table(tmp_path, "reliability")}
    assert predictions == {"calibrated", "cosine read as a probability"}


def test_validation_images_that_were_trained_on_are_pointed_out(tmp_path: Path):
    section = section_of(tmp_path, made_run(1), made_run(2, validation_was_trained_on=True))
    [warning] = [note for note in notes(section) if "trained on as well" in note]
    assert "2. stage 1" in warning
    assert "1. stage 1" not in warning


@pytest.mark.parametrize("others", [(), (5,)])
def test_without_validation_images_the_rest_stands(tmp_path: Path, others: Sequence[int]):
    """There is no reliability diagram, even where there is a run with validation images that is not featured."""
    lacking = [made_run(number, people=10, validation=[]) for number in range(1, 5)]
    section = section_of(tmp_path, *lacking, *(made_run(number, people=10) for number in others))
    assert list(pictures(section)) == ["score_densities", "det_roc", "open_set"]
    assert len([note for note in notes(section) if "no validation photographs" in note]) == 2
    for name in ("thresholds", "calibration"):
        there = (tmp_path / "tables" / f"{name}.csv").exists() and table(tmp_path, name)
        assert {row["run"] for row in there or ()} == {f"run{number}" for number in others}


def test_runs_without_scores_are_named_with_the_reason(tmp_path: Path):
    gone = made_run(2, test=[], missing={"features": "features.safetensors: no such file"})
    section = section_of(tmp_path, made_run(1, people=10), gone)
    [note] = [note for note in notes(section) if "Without error rates" in note]
    assert "2. stage 1 vit_small ce. Of the first of them: features.safetensors: no such file." in note
    only = section_of(tmp_path / "only", gone)
    assert [type(block) for block in only.blocks] == [Note]


@pytest.mark.parametrize("people", [1, 2, 3])
def test_few_people_are_no_exception_and_get_no_rates(tmp_path: Path, people: int):
    section = section_of(tmp_path, made_run(1, people=people))
    if people == 1:
        assert "at least one" in the(section, Note).text
        return
    assert len(pictures(section)) == 4
    rates, thresholds, open_set, _ = (cells_of(table)[0] for table in of_kind(section, Table))
    assert {*rates[1:], *thresholds[3:], *open_set[1:]} == {"not measurable"}
    assert all("so far" not in picture.alt for picture in pictures(section).values())
    needed = f"need 10 people with a photograph to compare, there are {people}"
    assert sum(needed in note for note in notes(section)) == 3


def test_rates_below_what_can_be_measured_are_bounded_with_the_reason(tmp_path: Path):
    easy = [replace(search, scores=search.scores**9) for search in made_searches(60, 1)]
    mated = easy[0].query_people[:, None] == easy[0].gallery_people
    for search in easy:
        search.scores[mated] += 1
    section = section_of(tmp_path, made_run(1, test=easy, validation=easy))
    rates, thresholds, *_ = (cells_of(table)[0] for table in of_kind(section, Table))
    assert rates[1] == thresholds[3] == "below 1.7"
    for rate in ("EER", "FMR"):
        assert any(f"1,770 pairs of people measure no {rate} below 1.7 %" in note for note in notes(section))


def test_rates_without_an_interval_say_so():
    assert _shown(RateEstimate(0.25, reason="no interval can be told from 2 people")) == "25.0 (no interval)"


def test_too_few_validation_people_cost_only_what_is_fixed_on_them(tmp_path: Path):
    section = section_of(tmp_path, made_run(1, validation=made_searches(1, 1)), made_run(2))
    assert [row["run"] for row in table(tmp_path, "verification")] == ["run1", "run2"]
    assert {row["run"] for row in table(tmp_path, "thresholds")} == {"run2"}
    assert {row["run"] for row in table(tmp_path, "calibration")} == {"run2"}
    told = [note for note in notes(section) if note.startswith("Not for 1. stage 1 vit_small ce:")]
    assert len(told) == 2
    assert all("too few (error rates need at least one genuine and one impostor" in note for note in told)


def test_a_featured_run_that_shares_no_curves_has_panels_and_rows(tmp_path: Path):
    section_of(tmp_path, made_run(1, people=10), made_run(2, people=10, style=None))
    for name in ("verification", "reliability"):
        assert {row["run"] for row in table(tmp_path, name)} == {"run1", "run2"}
