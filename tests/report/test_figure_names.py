"""What a figure shows of people's names, which may be long, of any script, or made to mislead."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from handclip.report.figures.embedding import Projections, projection_figure
from handclip.report.figures.names import person_labels, visible_name
from handclip.report.figures.retrieval import TILE_NAME_INCHES, TILE_NAME_SIZE, RankList, Tile, rank_list_figure
from handclip.report.figures.style import save_figure

NAMES = {
    1: "0000012",
    2: "502-712/503",
    3: "subject_000123",
    4: "Zoe\u0308",
    5: "Анна",
    6: "<b>$x$",
    7: "山田太郎",
    8: "مريم",
    9: "participant_01_left",
    10: "participant_02_left",
    11: "x" * 100_000,
    12: "a\nb",
    13: "",
}


def labels_of(names: dict[int, str]) -> dict[int, str]:
    return person_labels(names, TILE_NAME_INCHES, TILE_NAME_SIZE)


@pytest.mark.promise("hostile-people")
def test_names_are_shown_or_cut_in_the_middle_or_stand_in_the_table() -> None:
    assert labels_of(NAMES) == {
        1: "0000012",
        2: "502-…/503",
        3: "subj…123",
        4: "Zoë",
        5: "Анна",
        6: "<b>$x$",
        7: "#7",
        8: "#8",
        9: "#9",
        10: "#10",
        11: "xxxx…xxx",
        12: "a\\nb",
        13: "#13",
    }


@pytest.mark.promise("hostile-people")
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Zoe\u0308", "Zoë"),
        ("山田\u3000太郎", "山田 太郎"),
        ("a\tb\x1b[31m\x7f", r"a\tb\x1b[31m\x7f"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_what_would_not_be_seen_in_a_name_is_written_as_its_code(name: str, shown: str) -> None:
    assert visible_name(name) == shown


def test_every_label_is_drawn_in_its_room(tmp_path: Path) -> None:
    labels = labels_of(NAMES)
    tiles = [Tile(None, label, 0.5, False) for label in labels.values()]
    with warnings.catch_warnings(action="error"):
        figure = rank_list_figure([RankList("best", Tile(None, labels[1]), tiles, "")])
        save_figure(figure, tmp_path, "lists")
    drawn = {text.get_text(): text.get_window_extent() for text in figure.axes[0].texts}
    for label in labels.values():
        assert drawn[label].width / figure.dpi < TILE_NAME_INCHES * 1.05, label


def test_people_have_their_names_in_the_embedding_space(tmp_path: Path) -> None:
    points = np.arange(2 * len(NAMES), dtype=float).reshape(-1, 2)
    panel = Projections("a", points, points, np.array([0.5, 0.5]), np.array(list(NAMES)))
    with warnings.catch_warnings(action="error"):
        figure = projection_figure([panel], list(NAMES)[:8], NAMES)
        save_figure(figure, tmp_path, "space")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[:2] == ["person 0000012", "person 502…503"] and texts[6:] == ["person #7", "person #8", "5 others"]
