import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from handclip.errors import HandCLIPError
from handclip.report import explain
from handclip.report.explain import explain_to_files
from handclip.runs.artifacts import Explanation

MODEL = Path("model.pth")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Path]]:
    """The images that were explained, in place of a model; each has the same two maps."""
    asked = []

    def explanation(image: Path) -> Explanation:
        maps = {"Grad-CAM": np.array([[0, 0.25], [1, 0.5]], np.float32), "other": np.ones((1, 1), np.float32)}
        return Explanation(str(image), "", np.full((12, 16, 3), 200, np.uint8), maps)

    def record(checkpoint: Path, images: list[Path]) -> list[Explanation]:
        assert checkpoint == MODEL
        asked.append(images)
        return [explanation(image) for image in images]

    monkeypatch.setattr(explain, "explain_checkpoint", record)
    return asked


def test_figures_and_numbers_of_each_image(tmp_path: Path) -> None:
    written = explain_to_files(MODEL, [Path("photos/hand.jpg")], tmp_path / "out")
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


def test_images_of_the_same_name_do_not_replace_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[list[Path]]
) -> None:
    monkeypatch.setattr(explain, "attention_figure", lambda *_: Figure((1, 1)))  # the true one takes a second to draw
    images = [Path(name) for name in ("a/hand.jpg", "b/HAND.jpg", "b/hand_2.png", "hand.png", "./hand.png")]
    written = explain_to_files(MODEL, images, tmp_path)
    assert asked == [images[:4]]  # the last is named twice
    names = [path.name.removesuffix("_explained.csv") for path in written if path.suffix == ".csv"]
    assert names == ["hand", "HAND_2", "hand_2_2", "hand_3"]
    for image, path in zip(images, written[2::3], strict=False):
        assert str(image) in path.read_text()


def test_an_earlier_file_is_kept(tmp_path: Path, asked: list[list[Path]]) -> None:
    (tmp_path / "b_explained.svg").write_text("mine")
    with pytest.raises(HandCLIPError, match=r"b_explained\.svg exists already.*--out"):
        explain_to_files(MODEL, [Path("a.jpg"), Path("b.jpg")], tmp_path)
    assert not asked, "explained before it was checked"
    assert [path.name for path in tmp_path.iterdir()] == ["b_explained.svg"]
    assert (tmp_path / "b_explained.svg").read_text() == "mine"
