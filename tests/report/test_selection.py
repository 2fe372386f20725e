"""Which runs a report goes into."""

from pathlib import Path

import pytest
from made_runs import ALL_ASPECTS, write_run

from handclip.report.figures.style import MOST_SERIES
from handclip.report.report_data import ReportData
from handclip.report.runs import find_evaluations, read_run
from handclip.report.selection import gather

CE = ["cross_entropy"]


def gathered(folder: Path) -> ReportData:
    return gather([read_run(path) for path in find_evaluations([folder])[0]])


def write_study(folder: Path) -> None:
    """Two of CLIP's models and a CNN through all stages; the ViT's triplet run is the best."""
    for model, family, gain in (
        ("vit_small", "clip", 0.0),
        ("rn_small", "clip", -0.1),
        ("mbanet_small", "mbanet", -0.05),
    ):
        common = {"model": model, "family": family, "people": 12}
        write_run(folder / f"0_{model}", skill=0.4 + gain, stage="0", **common)
        write_run(folder / f"1_{model}", skill=0.6 + gain, stage="1", losses=CE, **common)
        write_run(folder / f"2_{model}_ce", skill=0.65 + gain, stage="2", losses=CE, **common)
        write_run(folder / f"2_{model}_ce_triplet", skill=0.8 + gain, stage="2", **common)


def test_clips_stages_and_the_cnn_stand_side_by_side(tmp_path: Path) -> None:
    write_study(tmp_path)
    data = gathered(tmp_path)
    featured = [run.row.run for run in data.featured]
    assert featured == ["0_vit_small", "1_vit_small", "2_vit_small_ce_triplet", "2_mbanet_small_ce_triplet"]
    assert data.best.row.run == "2_vit_small_ce_triplet"


def test_no_figure_has_more_curves_than_can_be_told_apart(tmp_path: Path) -> None:
    write_study(tmp_path)
    data = gathered(tmp_path)
    assert len(data.runs) == 12
    assert len(data.shown) == MOST_SERIES
    assert data.best in data.shown
    assert sorted(run.style for run in data.shown if run.style is not None) == list(range(MOST_SERIES))
    assert all(run.style is None for run in data.runs if run not in data.shown)
    # Of nine models and stages it is a baseline that gives way, but not one that is featured.
    assert set(data.featured) <= set(data.shown)
    assert {(run.row.model, run.row.stage) for run in data.shown if run.row.stage != "0"} == {
        (model, stage) for model in ("vit_small", "rn_small", "mbanet_small") for stage in ("1", "2")
    }


def test_the_report_goes_into_the_plain_gallery_averaged_over_aspects(tmp_path: Path) -> None:
    write_run(tmp_path / "a", aspects=ALL_ASPECTS, people=8)
    protocol = gathered(tmp_path).block.protocol
    assert (protocol.aspect, protocol.gallery_protocol, protocol.flip) == ("all", "gallery", "sum")


def test_the_report_goes_where_most_runs_are(tmp_path: Path) -> None:
    write_run(tmp_path / "a", people=8)
    for number in range(2):
        write_run(tmp_path / f"b{number}", aspects=["palmar_l"], people=8, luck=number, manifest_sha256="f" * 64)
    data = gathered(tmp_path)
    assert data.block.protocol.aspect == "palmar_l"
    assert len(data.runs) == len(data.shown) == len(data.featured) == 2


@pytest.mark.parametrize("options", [1, 20])
def test_runs_that_read_the_same_are_told_apart_where_figures_have_room(options: int, tmp_path: Path) -> None:
    """However many options tell two runs apart; their numbers do anyway."""
    for rate in (1, 2):
        values = {f"option{place}": rate / 10 for place in range(options)}
        write_run(tmp_path / f"lr{rate}", luck=rate, people=8, options=values)
    labels = [run.label for run in gathered(tmp_path).runs]
    names = [f"{rate}. stage 1 vit_small ce + triplet, option0 0.{rate}" for rate in (1, 2)]
    assert labels == (names if options == 1 else [f"{name}, option1 0.{n}, ..." for n, name in enumerate(names, 1)])
