import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_runs import write_run
from quick_figures import save_dots
from section_parts import rows_of, write_records

from handclip.errors import HandCLIPError
from handclip.report import project
from handclip.report.figures.embedding import MOST_NAMED
from handclip.report.project import MOST_POINTS, Sample, project_runs
from handclip.report.runs import read_runs


def test_runs_on_the_same_images_share_figures_in_the_order_given(tmp_path: Path) -> None:
    for name in "abcde":
        write_records(write_run(tmp_path / name, options={"lr": 0.2 if name == "e" else 0.1}))
    out = tmp_path / "out"
    files = project_runs([tmp_path / name for name in "eadbc"], out)
    *figures, points, table = [path.relative_to(out).as_posix() for path in files]
    stem = figures[0].removesuffix("_1.png")
    assert stem.startswith("figures/projection_11k_dorsal_r_")
    assert figures == [f"{stem}_{part}.{kind}" for part in (1, 2) for kind in ("png", "svg")]
    assert (points, table) == ("tables/projections.csv", "tables/embedding_space.csv")
    assert all(path.is_file() for path in files)
    numbers = rows_of(files[-1])
    assert [row["run"] for row in numbers] == list("eadbc")
    # As in the report, labels tell runs apart.
    assert [row["label"] for row in numbers][:2] == [
        f"{number}. stage 1 vit_small ce + triplet, lr {rate}" for number, rate in ((1, 0.2), (2, 0.1))
    ]
    assert {row["run"] for row in rows_of(files[-2])} == set("abcde")


def test_runs_on_other_data_get_a_figure_of_their_own(tmp_path: Path) -> None:
    for name, people in (("a", 12), ("b", 9)):
        write_records(write_run(tmp_path / name), people=people)
    files = project_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert len(files) == 2 * 2 + 2
    numbers = rows_of(files[-1])
    assert [row["people"] for row in numbers] == ["12", "9"]
    assert numbers[0]["manifest_sha256"] != numbers[1]["manifest_sha256"]


def test_a_folder_that_may_not_be_read_fails_when_the_rest_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_dots(monkeypatch)
    write_records(write_run(tmp_path / "a"))
    monkeypatch.setattr(project, "read_runs", lambda paths: (read_runs(paths)[0], ["b: cannot be read"]))
    with pytest.raises(HandCLIPError, match=r"out was written, but not of all that is named: b: cannot be read$"):
        project_runs([tmp_path / "a"], tmp_path / "out")
    assert rows_of(tmp_path / "out" / "tables" / "embedding_space.csv")


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    write_records(write_run(tmp_path / "a"))
    first, second = (project_runs([tmp_path / "a"], tmp_path / name) for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("name", ["manifest_dorsal_r.json", "features.safetensors"])
def test_an_evaluation_that_lacks_its_records_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    write_records(write_run(tmp_path / "a"))
    (tmp_path / "a" / name).unlink()
    with pytest.raises(HandCLIPError, match=rf"a/{re.escape(name)}.*Evaluate the run again"):
        project_runs([tmp_path / "a"], tmp_path / "out")


def test_a_manifest_that_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    for name, people in (("a", 12), ("b", 9)):
        write_records(write_run(tmp_path / name), people=people)
    shutil.copy(tmp_path / "b" / "manifest_dorsal_r.json", tmp_path / "a" / "manifest_dorsal_r.json")
    with pytest.raises(HandCLIPError, match=r"not what metrics\.json beside them was measured with"):
        project_runs([tmp_path / "a"], tmp_path / "out")


def test_people_of_one_image_each_cannot_be_projected(tmp_path: Path) -> None:
    write_records(write_run(tmp_path / "one"), people=0)
    with pytest.raises(HandCLIPError, match="too few"):
        project_runs([tmp_path / "one"], tmp_path / "out")


def test_a_sample_has_whole_people_and_colours_for_those_with_two_images() -> None:
    people = np.repeat(np.arange(400), [1 if person % 2 else 3 for person in range(400)])
    sample = Sample.of(people)
    assert len(sample.named) == MOST_NAMED
    assert all(person % 2 == 0 for person in sample.named)
    assert set(sample.named) <= sample.people
    points = int(np.isin(people, list(sample.people)).sum())
    assert MOST_POINTS - 3 < points <= MOST_POINTS
    assert sample == Sample.of(people[::-1])
    few = Sample.of(np.array([4, 4, 7, 9, 9]))
    assert (few.named, few.people) == ((4, 9), {4, 7, 9})
