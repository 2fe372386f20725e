"""The soak test in short: kinds of work killed a few times each, and training stopped by SIGTERM as well."""

from pathlib import Path

import pytest
from soak import soak, train_and_evaluate
from works import Work, make_data, works_on

from handclip.synthetic import SyntheticHands

EVERY = {"train, 0 workers": 45, "evaluate": 90, "study": 240, "prepare": 12}
"""Before every so many changes to the disk they are killed: two or three times each."""


def without_figures() -> None:
    """Leave out of reports what takes seconds to draw."""
    from handclip.report import report

    report._SECTIONS = report._SECTIONS[:1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("soak")


@pytest.fixture(scope="module")
def works(place: Path) -> dict[str, Work]:
    data = make_data(place / "data", SyntheticHands(identities=12, images_per_aspect=3, size=64))
    works = works_on(data, epochs=2, model="resnet_small")
    train_and_evaluate(data, works["train, 0 workers"], data.trained)
    return works


@pytest.mark.promise("killed")
@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERY)
def test_work_that_is_killed_ends_as_if_nothing_had_happened(kind: str, works: dict[str, Work], place: Path) -> None:
    stops = int(kind.startswith("train"))
    (result,) = soak(
        [works[kind]],
        place,
        kills=1,
        seed=0,
        stops=stops,
        every=EVERY[kind],
        freshly=False,
        before=without_figures,
    )
    assert result.faults == []
    assert (result.kills, result.stops) == (1, stops)
    assert result.before_changes >= 1
    assert result.rounds >= 2 + stops
