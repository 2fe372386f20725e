import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from handclip.errors import HandCLIPError
from handclip.report import explain
from handclip.report.explain import explain_to_files, write_explanations_files
from handclip.runs.artifacts import Explanation


def explanation(image: str, value: float = 1.0) -> Explanation:
    maps = {"Grad-CAM": np.array([[0, 0.25], [value, 0.5]], np.float32), "other": np.ones((1, 1), np.float32)}
    return Explanation(image, "", np.full((12, 16, 3), 200, np.uint8), maps)


def test_figures_and_numbers_of_each_image(tmp_path: Path) -> None:
    written = write_explanations_files([explanation("photos/hand.jpg")], tmp_path / "out")
    assert written == [tmp_path / "out" / f"hand_explained.{kind}" for kind in ("png", "svg", "csv")]
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    with Image.open(written[0]) as picture:
        assert picture.width > picture.height > 100
    with written[2].open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["image", "method", "row", "column", "value"],
            ["photos/hand.jpg", "Grad-CAM", "0", "0", "0.0"],
            ["photos/hand.jpg", "Grad-CAM", "0", "1", "0.25"],
            ["photos/hand.jpg", "Grad-CAM", "1", "0", "1.0"],
            ["photos/hand.jpg", "Grad-CAM", "1", "1", "0.5"],
            ["photos/hand.jpg", "other", "0", "0", "1.0"],
        ]


@pytest.fixture
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty figure in place of the one that takes a second to draw."""
    monkeypatch.setattr(explain, "attention_figure", lambda *_: Figure((1, 1)))


@pytest.mark.usefixtures("_undrawn")
def test_images_of_the_same_name_do_not_replace_each_other(tmp_path: Path) -> None:
    images = ["a/hand.jpg", "b/HAND.jpg", "b/hand_2.png", "hand.png"]
    written = write_explanations_files([explanation(image) for image in images], tmp_path)
    names = [path.name.removesuffix("_explained.csv") for path in written if path.suffix == ".csv"]
    assert names == ["hand", "HAND_2", "hand_2_2", "hand_3"]
    for image, path in zip(images, written[2::3], strict=True):
        assert image in path.read_text()


def test_an_earlier_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "explain_checkpoint", lambda *_: pytest.fail("explained before it was checked"))
    (tmp_path / "b_explained.svg").write_text("mine")
    with pytest.raises(HandCLIPError, match=r"b_explained\.svg exists already.*--out"):
        explain_to_files(Path("model.pth"), [Path("a.jpg"), Path("b.jpg")], tmp_path)
    with pytest.raises(HandCLIPError, match=r"b_explained\.svg exists already"):
        write_explanations_files([explanation("a.jpg"), explanation("b.jpg")], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["b_explained.svg"]
    assert (tmp_path / "b_explained.svg").read_text() == "mine"


@pytest.mark.usefixtures("_undrawn")
def test_an_image_named_twice_is_explained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, list[Path]]] = []

    def record(checkpoint: Path, images: list[Path]) -> list[Explanation]:
        asked.append((checkpoint, images))
        return [explanation(str(image)) for image in images]

    monkeypatch.setattr(explain, "explain_checkpoint", record)
    written = explain_to_files(Path("model.pth"), [Path("a.jpg"), Path("./a.jpg"), Path("b.jpg")], tmp_path)
    assert asked == [(Path("model.pth"), [Path("a.jpg"), Path("b.jpg")])]
    assert len(written) == 6
