from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import write_run
from matplotlib.figure import Figure
from section_parts import notes, pictures, words

from handclip.report.report_data import ReportData
from handclip.report.report_writer import ReportWriter, Section
from handclip.report.runs import read_run
from handclip.report.sections.attention import attention_section
from handclip.report.selection import gather
from handclip.runs.artifacts import Explanation, write_explanations

ROLLOUT, GRAD_CAM, SPATIAL = "attention rollout", "Grad-CAM", "spatial attention (gamma -0.009)"


def hand(number: int, methods: tuple[str, ...]) -> Explanation:
    photograph = np.full((20, 30, 3), 20 * number, np.uint8)
    values = np.zeros((4, 5), np.float32)
    values[0, : 2 + number] = 1
    return Explanation(f"Hands/{number}.jpg", "dorsal_r", photograph, dict.fromkeys(methods, values))


def run(
    folder: Path, *methods: str, hands: tuple[int, ...] | None = (0, 1), family: str = "clip", **changes: Any
) -> Path:
    model = {"clip": "vit_small", "resnet": "resnet_small", "mbanet": "mbanet_small"}[family]
    write_run(folder, family=family, model=model, **changes)
    if hands is not None:
        write_explanations(folder, [hand(number, methods) for number in hands])
    return folder


def section(folder: Path, *runs: Path) -> Section:
    return attention_section(data(*runs), ReportWriter(folder / "page"))


def data(*runs: Path) -> ReportData:
    return gather([read_run(run) for run in runs])


Columns = list[tuple[str, str, list[int]]]


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> Columns:
    """Label, method and number of each column's photographs, in place of the figure, which takes a second to draw."""
    asked: Columns = []

    def record(hands: Any, maps: Any) -> Figure:
        numbers = [int(photograph[0, 0, 0]) // 20 for _, photograph in hands]
        shown = [min(2 + number, 5) for number in numbers]
        assert all([int((values > 0).sum()) for values in column.values] == shown for column in maps)
        asked.extend((column.label, column.method, numbers) for column in maps)
        return Figure((1, 1))

    monkeypatch.setattr("handclip.report.sections.attention.attention_figure", record)
    return asked


def test_runs_are_shown_on_the_same_hands(tmp_path: Path, columns: Columns) -> None:
    first = run(tmp_path / "first", ROLLOUT, hands=(0, 1, 2))
    second = run(tmp_path / "second", GRAD_CAM, hands=(2, 3, 1), family="resnet", losses=["cross_entropy"])
    found = section(tmp_path, first, second)
    labels = {run.row.model: run.label for run in data(first, second).runs}
    assert columns == [
        (labels["vit_small"], ROLLOUT, [1, 2]),
        (labels["resnet_small"], GRAD_CAM, [1, 2]),
    ]
    [picture] = pictures(found).values()
    assert picture.photographic
    assert picture.files.png.is_file()
    assert picture.files.png == tmp_path / "page" / "figures" / "attention.png"
    assert picture.caption.startswith("2 photographs of the test people")
    # Above a half in 3 and in 4 of 20 cells.
    assert f"18 % by {ROLLOUT} of {labels['vit_small']}; 18 % by {GRAD_CAM}" in picture.alt
    [caution] = notes(found)
    assert "a hint, not a proof" in caution
    assert "explanations.safetensors" in words(found)


def test_the_figure_is_drawn_and_saved(tmp_path: Path) -> None:
    one = run(tmp_path / "one", GRAD_CAM, SPATIAL, family="mbanet")
    writer = ReportWriter(tmp_path / "page")
    [picture] = pictures(attention_section(data(one), writer)).values()
    assert writer.files == [picture.files.png, picture.files.svg]
    svg = picture.files.svg.read_text()
    assert svg.count("<image") >= 6  # two hands, the photograph and two maps


@pytest.mark.usefixtures("columns")
def test_only_methods_that_are_shown_are_explained(tmp_path: Path) -> None:
    one = words(section(tmp_path, run(tmp_path / "one", ROLLOUT)))
    assert "Attention rollout is for" in one
    assert "Grad-CAM is for" not in one
    other = words(section(tmp_path, run(tmp_path / "other", GRAD_CAM, SPATIAL, family="mbanet")))
    assert "Attention rollout is for" not in other
    assert "Grad-CAM is for" in other
    assert "With a gamma near 0" in other


def test_an_mbanet_is_shown_even_where_it_is_not_featured(tmp_path: Path, columns: Columns) -> None:
    runs = [run(tmp_path / f"vit{stage}", ROLLOUT, stage=stage, skill=0.8) for stage in "012"]
    runs.append(run(tmp_path / "resnet", GRAD_CAM, family="resnet", skill=0.9))
    runs.append(run(tmp_path / "worse", GRAD_CAM, SPATIAL, family="mbanet", skill=0.1, seed=1))
    runs.append(run(tmp_path / "better", GRAD_CAM, SPATIAL, family="mbanet", skill=0.6, seed=2))
    gathered = data(*runs)
    assert "mbanet_small" not in {one.row.model for one in gathered.featured}
    attention_section(gathered, ReportWriter(tmp_path / "page"))
    better = next(one.label for one in gathered.runs if one.row.run == "better")
    assert [method for _, method, _ in columns] == [ROLLOUT, ROLLOUT, ROLLOUT, GRAD_CAM, GRAD_CAM, SPATIAL]
    assert {label for label, _, _ in columns[-2:]} == {better}


def test_a_vit_is_shown_even_where_another_of_clips_models_is_better(tmp_path: Path, columns: Columns) -> None:
    for stage, skill in (("0", 0.3), ("1", 0.7), ("2", 0.9)):
        write_run(tmp_path / f"rn{stage}", model="rn_small", family="clip", stage=stage, skill=skill, losses=["x"])
        write_explanations(tmp_path / f"rn{stage}", [hand(0, (GRAD_CAM,))])
    cnn = run(tmp_path / "cnn", GRAD_CAM, hands=(0,), family="resnet", skill=0.8)
    vits = [run(tmp_path / f"vit{n}", ROLLOUT, hands=(0,), skill=0.2 + n / 10, options={"lr": n}) for n in (1, 2)]
    shown = data(*(tmp_path / f"rn{stage}" for stage in "012"), cnn, *vits)
    assert not {"vit1", "vit2"} & {one.row.run for one in shown.featured}
    attention_section(shown, ReportWriter(tmp_path / "page"))
    best = next(one for one in shown.runs if one.row.run == "vit2")
    assert [label for label, method, _ in columns if method == ROLLOUT] == [best.label]


def test_many_hands_are_cut_to_what_a_page_holds(tmp_path: Path, columns: Columns) -> None:
    section(tmp_path, run(tmp_path / "one", ROLLOUT, hands=tuple(range(8))))
    assert columns[0][2] == list(range(6))


@pytest.mark.usefixtures("columns")
def test_what_is_missing_is_said_beside_what_is_there(tmp_path: Path) -> None:
    there = run(tmp_path / "there", ROLLOUT)
    old = run(tmp_path / "old", ROLLOUT, hands=None, seed=1)
    none = run(tmp_path / "none", hands=(), seed=2)
    found = section(tmp_path, there, old, none)
    labels = {one.row.run: one.label for one in data(there, old, none).runs}
    assert len(pictures(found)) == 1
    unread, empty = notes(found, "missing")
    assert unread.startswith(f"No maps of {labels['old']}: {old / 'explanations.safetensors'}: no such file")
    assert empty.startswith(f"No maps of {labels['none']}: the evaluation has kept none. Its config.yml says which: ")


def test_nothing_is_drawn_where_nothing_is_there(tmp_path: Path) -> None:
    found = section(tmp_path, run(tmp_path / "old", hands=None), run(tmp_path / "none", hands=(), seed=1))
    assert not pictures(found)
    assert len(found.blocks) == len(notes(found)) == 2
    assert not (tmp_path / "page").exists()


def test_different_photographs_are_not_shown_side_by_side(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", ROLLOUT, hands=(0,)), run(tmp_path / "other", ROLLOUT, hands=(1,), seed=1)
    found = section(tmp_path, one, other)
    assert not pictures(found)
    [note] = notes(found)
    assert "different photographs" in note
