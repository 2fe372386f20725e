from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import ALL_ASPECTS, write_run
from section_parts import IMAGES, cells_of, data_of, image, notes, pictures, rows_of, the, words, write_records

from handclip.metrics.verification import ScoredPairs, verify
from handclip.report.report_data import ReportRun
from handclip.report.report_writer import Picture, ReportWriter, Section
from handclip.report.sections.groups import FEWEST_PEOPLE, groups_section
from handclip.report.table import Table

PEOPLE = 26
ENOUGH, FEW = range(1000, 1090), range(1000, 1010)
"""Of the first, a threshold for FMR 1 % can be set; of the others, that of the EER alone."""


def described(aspects: tuple[str, ...] = ("dorsal_r",)) -> dict[str, dict[str, str]]:
    """Odd people are men and harder to find; three people are dark, and the age of some is not known."""
    return {
        image(aspect, person, number).path: {
            "gender": "male" if person % 2 else "female",
            "skin_colour": "dark" if person < 3 else "fair",
            "age": ["18", "25", "64", "unknown"][person % 4],
            "nail_polish": "yes" if number == 0 else "no",
            "irregularities": "no",
        }
        for aspect in aspects
        for person in range(PEOPLE)
        for number in range(IMAGES)
    }


HARD = dict.fromkeys(range(1, PEOPLE, 2), 2.5)
ERRING: dict[str, Any] = {"trained": FEW, "noise_of": {**HARD, **dict.fromkeys(FEW, 4.0)}}
"""The threshold is so low that FMR can be measured on few people."""


def write_described(run: Path, **changes: Any) -> Path:
    common = {"people": PEOPLE, "noise_of": HARD, "attributes": described(), "trained": ENOUGH}
    write_records(run, **{**common, **changes})
    return run


Made = tuple[Section, dict[tuple[str, str, str], dict[str, str]]]
"""A section, and the rows of its table by run, attribute and group."""


def made(study: Path) -> Made:
    section = groups_section(data_of(study), ReportWriter(study / "out"))
    table = study / "out" / "tables" / "groups.csv"
    rows = rows_of(table) if table.exists() else []
    return section, {(row["run"], row["attribute"], row["group"]): row for row in rows}


def made_of(folder: Path, **changes: Any) -> Made:
    write_described(write_run(folder / "run"), **changes)
    return made(folder)


def brute_force(run: ReportRun, chosen: set[int], threshold: float) -> tuple[float, float, float]:
    """Rank-1, FNMR and FMR of the queries of some people: over queries, then draws and aspects."""
    columns = []
    for search in run.searches():
        hits, genuine, impostor = [], [], []
        for scores, person in zip(search.scores, search.query_people, strict=True):
            if person not in chosen:
                continue
            own = [score for score, other in zip(scores, search.gallery_people, strict=True) if other == person]
            others = [score for score, other in zip(scores, search.gallery_people, strict=True) if other != person]
            hits.append(max(own) > max(others))
            genuine += [score < threshold for score in own]
            impostor += [score >= threshold for score in others]
        columns.append((np.mean(hits), np.mean(genuine), np.mean(impostor)))
    rank1, fnmr, fmr = np.mean(columns, axis=0)
    return float(rank1), float(fnmr), float(fmr)


def test_rates_of_groups_are_those_of_their_queries_with_intervals_over_people(tmp_path: Path) -> None:
    section, rows = made_of(tmp_path, **ERRING)
    run = data_of(tmp_path).best
    threshold = float(rows["run", "", "everybody"]["threshold"])
    groups = {
        ("gender", "male"): set(range(1, PEOPLE, 2)),
        ("skin_colour", "fair"): set(range(3, PEOPLE)),
        ("age", "under 20"): set(range(0, PEOPLE, 4)),
        ("age", "20 to 29"): set(range(1, PEOPLE, 4)),
        ("age", "50 and over"): set(range(2, PEOPLE, 4)),
    }
    for (attribute, group), people in groups.items():
        row = rows["run", attribute, group]
        assert int(row["people"]) == len(people)
        assert int(row["images"]) == len(people) * IMAGES
        assert int(row["searches"]) == len(people) * (IMAGES - 1) * 3
        expected = brute_force(run, people, threshold)
        for name, value in zip(("rank1", "fnmr", "fmr"), expected, strict=True):
            if name != "fnmr" or len(people) >= 10:
                assert float(row[name]) == pytest.approx(value)
                assert float(row[f"{name}_low"]) <= float(row[name]) <= float(row[f"{name}_high"])
            else:
                assert row[name] == row[f"{name}_low"] == ""
    assert float(rows["run", "gender", "male"]["rank1_high"]) < float(rows["run", "gender", "female"]["rank1"])
    assert the(section, Picture).files.png.is_file()

    # Both people of an impostor comparison are resampled.
    row = rows["run", "gender", "female"]
    accepted, compared = np.zeros((PEOPLE, PEOPLE)), np.zeros((PEOPLE, PEOPLE))
    for search in run.searches():
        impostors = search.query_people[:, None] != search.gallery_people
        for query, place in np.argwhere(impostors & (search.query_people % 2 == 0)[:, None]):
            pair = search.query_people[query], search.gallery_people[place]
            accepted[pair] += search.scores[query, place] >= threshold
            compared[pair] += 1
    rng = np.random.default_rng(1)
    drawn = [np.bincount(rng.integers(0, PEOPLE, PEOPLE), minlength=PEOPLE) for _ in range(4000)]
    drawn_rates = np.array([weights @ accepted @ weights / (weights @ compared @ weights) for weights in drawn])
    width = float(row["fmr_high"]) - float(row["fmr_low"])
    assert width == pytest.approx(np.ptp(np.quantile(drawn_rates, [0.025, 0.975])), rel=0.15)
    # Resampling the people of the queries alone gives much less.
    alone = np.array([(weights @ accepted).sum() / (weights @ compared).sum() for weights in drawn])
    assert width > 1.3 * np.ptp(np.quantile(alone, [0.025, 0.975]))


def test_attributes_divide_people_and_images_and_small_groups_are_marked(tmp_path: Path) -> None:
    section, rows = made_of(tmp_path)
    assert [rows["run", "nail_polish", value]["images"] for value in ("no", "yes")] == [str(2 * PEOPLE), str(PEOPLE)]
    assert [rows["run", "nail_polish", value]["people"] for value in ("no", "yes")] == [str(PEOPLE)] * 2
    # All hands are alike in this.
    assert not [key for key in rows if key[1] == "irregularities"]

    dark = rows["run", "skin_colour", "dark"]
    assert int(dark["people"]) < FEWEST_PEOPLE
    assert dark["rank1"] == dark["fnmr_low"] == ""
    [note] = notes(section, "warning")
    assert "without a rate: skin colour dark (3)" in note
    assert "gender male (13)" in note
    assert "skin colour fair" not in note  # 23 people
    [cells] = [cells for cells in cells_of(the(section, Table)) if cells[1] == "dark"]
    assert cells[-3:] == ["too few people"] * 3

    for text in (f"{len(rows) - 1} groups are compared", "no proof of bias", "at most 1 % of impostors"):
        assert text in words(section)
    rank1 = float(rows["run", "gender", "male"]["rank1"])
    assert f"from {100 * rank1:.1f} % (gender male) to" in the(section, Picture).alt


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rerank": {"k1": 20, "k2": 6, "lambda": 0.3}}, "without re-ranking"),
        ({"options": {"train_split": "train_all"}}, "trained on the validation images"),
    ],
)
def test_what_another_evaluation_means_is_told(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    write_described(write_run(tmp_path / "run", **changes))
    section, rows = made(tmp_path)
    assert told in " ".join([words(section), *notes(section)])
    if "rerank" in changes:
        score = data_of(tmp_path).best.row.scores["rank1"].mean
        assert float(rows["run", "", "everybody"]["rank1"]) != pytest.approx(score)


def test_a_tie_counts_against_the_model(tmp_path: Path) -> None:
    _, rows = made_of(tmp_path, spread=0.0, noise=0.0, noise_of={})
    assert float(rows["run", "gender", "male"]["rank1"]) == 0


def test_everybody_is_as_the_verdict_and_the_biometric_section_say(tmp_path: Path) -> None:
    write_described(write_run(tmp_path / "run", aspects=ALL_ASPECTS), aspects=ALL_ASPECTS, **ERRING)
    _, rows = made(tmp_path)
    everybody, run = rows["run", "", "everybody"], data_of(tmp_path).best
    score = run.row.scores["rank1"]
    found = [float(everybody[key]) for key in ("rank1", "rank1_low", "rank1_high")]
    assert found == [score.mean, score.low, score.high]
    [(fmr, fnmr)] = verify(ScoredPairs.of(run.searches()), [float(everybody["threshold"])]).at_fixed
    for name, rate in (("fmr", fmr), ("fnmr", fnmr)):
        found = [float(everybody[key]) for key in (name, f"{name}_low", f"{name}_high")]
        assert found == pytest.approx([rate.value, rate.low, rate.high])


def test_groups_are_compared_on_the_aspects_that_all_of_them_are_on(tmp_path: Path) -> None:
    attributes = described(ALL_ASPECTS)
    for path, known in attributes.items():
        known["nail_polish"] = "yes" if "dorsal" in path and int(path.split("_")[2]) < 12 else "no"
    write_described(write_run(tmp_path / "run", aspects=ALL_ASPECTS), aspects=ALL_ASPECTS, attributes=attributes)
    section, rows = made(tmp_path)
    for value in ("everybody", "no", "yes"):
        assert rows["run", "nail_polish", value]["aspects"] == "dorsal_r dorsal_l"
    assert rows["run", "gender", "male"]["aspects"] == " ".join(ALL_ASPECTS)
    assert ("run", "gender", "everybody") not in rows
    run = data_of(tmp_path).best
    dorsal = [search for search in run.searches() if search.aspect.startswith("dorsal")]
    assert int(rows["run", "nail_polish", "everybody"]["searches"]) == sum(len(search.query) for search in dorsal)
    parts = []
    for search in dorsal:
        own = search.query_people[:, None] == search.gallery_people
        hits = np.where(own, search.scores, -1).max(axis=1) > np.where(own, -1, search.scores).max(axis=1)
        parts.append((hits[search.query_people >= 12].mean(), hits.mean()))
    for value, rate in zip(("no", "everybody"), np.mean(parts, axis=0), strict=True):
        assert float(rows["run", "nail_polish", value]["rank1"]) == pytest.approx(rate)
    assert "Nail polish on dorsal_r, dorsal_l." in words(section)
    assert ["Nail polish", "everybody", "dorsal_r, dorsal_l"] in [line[:3] for line in cells_of(the(section, Table))]


def test_a_stray_label_on_another_aspect_does_not_decide(tmp_path: Path) -> None:
    attributes = described(ALL_ASPECTS)
    for path, known in attributes.items():
        stray = path == image("palmar_r", 3, 1).path
        known["nail_polish"] = "yes" if stray or ("dorsal_r" in path and int(path.split("_")[2]) < 12) else "no"
    write_described(write_run(tmp_path / "run", aspects=ALL_ASPECTS), aspects=ALL_ASPECTS, attributes=attributes)
    _, rows = made(tmp_path)
    assert rows["run", "nail_polish", "yes"]["aspects"] == "dorsal_r"


def test_thresholds_never_depend_on_test_images(tmp_path: Path) -> None:
    thresholds = set()
    for name, hard in (("easy", {}), ("hard", dict.fromkeys(range(PEOPLE), 9.0))):
        write_described(write_run(tmp_path / name / "run"), noise_of=hard, people=PEOPLE)
        _, rows = made(tmp_path / name)
        thresholds.add(rows["run", "", "everybody"]["threshold"])
        run = data_of(tmp_path / name).best
    # The draws of noise after the test images are the same, and so are the features of validation and training.
    assert len(thresholds) == 1
    impostors = np.concatenate(
        [s.scores[s.query_people[:, None] != s.gallery_people] for s in run.validation_searches()]
    )
    [threshold] = map(float, thresholds)
    assert np.mean(impostors >= threshold) <= 0.01 < np.mean(impostors >= threshold - 0.01)


def test_several_runs_and_aspects_share_a_figure(tmp_path: Path) -> None:
    for name, stage in (("raw", "0"), ("trained", "1")):
        run = write_run(tmp_path / name, aspects=ALL_ASPECTS, stage=stage)
        write_described(run, aspects=ALL_ASPECTS, attributes=described(ALL_ASPECTS))
    section, rows = made(tmp_path)
    assert {run for run, _, _ in rows} == {"raw", "trained"}
    assert int(rows["raw", "gender", "male"]["images"]) == 4 * IMAGES * PEOPLE // 2
    assert int(rows["raw", "gender", "male"]["people"]) == PEOPLE // 2
    assert list(pictures(section)) == ["groups", "groups_of_runs"]


def test_few_validation_people_leave_the_threshold_of_the_equal_error_rate(tmp_path: Path) -> None:
    section, rows = made_of(tmp_path, trained=FEW)
    assert "needs 3,000 pairs of people, there are 45" in words(section)
    run = data_of(tmp_path).best
    [search] = run.validation_searches()
    own = search.query_people[:, None] == search.gallery_people
    threshold = float(rows["run", "", "everybody"]["threshold"])
    assert np.mean(search.scores[own] < threshold) == pytest.approx(np.mean(search.scores[~own] >= threshold), abs=0.1)


def test_without_validation_images_rank_1_alone_is_shown(tmp_path: Path) -> None:
    section, rows = made_of(tmp_path, trained=range(0))
    assert "fnmr" not in rows["run", "", "everybody"]
    assert notes(section, "missing")
    assert "Rank-1" in the(section, Picture).alt
    assert "FNMR" not in the(section, Picture).alt


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("no attributes", "says nothing of the people"),
        ("all alike", "the same of all"),
        ("few people", "4 people were tested"),
        ("no file of attributes", "attributes.csv"),
        ("no features", "features.safetensors"),
    ],
)
def test_what_cannot_be_shown_is_said_why(tmp_path: Path, change: str, reason: str) -> None:
    run = write_described(write_run(tmp_path / "run"))
    if change == "no attributes":
        write_described(run, attributes={})
    elif change == "all alike":
        write_described(run, attributes={path: {"gender": "male"} for path in described()})
    elif change == "few people":
        write_described(run, people=4)
    else:
        (run / ("features.safetensors" if change == "no features" else "attributes.csv")).unlink()
    section, _ = made(tmp_path)
    assert len(section.blocks) == 1
    [note] = notes(section, "missing")
    assert reason in note
