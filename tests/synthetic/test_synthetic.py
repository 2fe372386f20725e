"""Synthetic hands: the layout of 11k Hands, reproducible image by image, and worth identifying."""

import csv
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from handclip.errors import ConfigError, DataError, HandCLIPError
from handclip.synthetic import WITH_RING, SyntheticHands, dataset, generate, render_hand

SMALL = SyntheticHands(identities=5, images_per_aspect=2, size=48)
HEADER = b"id,age,gender,skinColor,accessories,nailPolish,aspectOfHand,imageName,irregularities\r\n"
REAL_HAND_INFO = Path(__file__).parents[3] / "shared/data/hands11k_sample/HandInfo.csv"


def pixels(hands: SyntheticHands, identity: int, aspect: str, shot: int) -> npt.NDArray[np.float64]:
    return np.asarray(render_hand(hands, identity, aspect, shot), dtype=np.float64)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "HandInfo.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("synthetic") / "hands", SMALL)


@pytest.fixture
def start_method(request: pytest.FixtureRequest) -> Iterator[None]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def test_an_image_is_an_rgb_square_of_the_size_asked_for() -> None:
    image = render_hand(SyntheticHands(size=72), 3, "palmar_r", 1)
    assert (image.mode, image.size) == ("RGB", (72, 72))


def test_an_image_depends_on_its_seed_identity_aspect_and_shot_and_on_nothing_else() -> None:
    first = pixels(SMALL, 1, "dorsal_r", 0)
    for other in ((2, "dorsal_r", 0), (1, "dorsal_l", 0), (1, "palmar_l", 0), (1, "dorsal_r", 1)):
        assert not np.array_equal(first, pixels(SMALL, *other))
    assert not np.array_equal(first, pixels(SyntheticHands(size=48, seed=1), 1, "dorsal_r", 0))
    assert np.array_equal(first, pixels(SyntheticHands(identities=9, aspects=("dorsal_r",), size=48), 1, "dorsal_r", 0))


def test_everything_is_drawn_from_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numpy pads seeds with zeros: the streams of person 0, side 0, aspect 0 and shot 0 must still differ."""
    states = []

    def default_rng(seed: list[int]) -> np.random.Generator:
        sequence = np.random.SeedSequence(seed)
        states.append(tuple(sequence.generate_state(4)))
        return np.random.Generator(np.random.PCG64(sequence))

    monkeypatch.setattr(np.random, "default_rng", default_rng)
    pixels(SyntheticHands(size=32), 0, "dorsal_r", 0)
    assert len(set(states)) == len(states) == 4


def test_the_csv_has_the_columns_quotes_and_line_ends_of_11k(root: Path) -> None:
    raw = (root / "HandInfo.csv").read_bytes()
    assert raw.startswith(HEADER + b'"0000001",')
    assert raw.endswith(b"\r\n")
    assert raw.count(b"\n") == raw.count(b"\r\n") == 1 + len(rows(root))
    assert raw.splitlines()[1].count(b'"') == 10
    assert {row["skinColor"] for row in rows(root)} <= {"very fair", "fair", "medium", "dark"}
    assert {row["gender"] for row in rows(root)} <= {"male", "female"}
    assert all(
        row["nailPolish"] in "01" and row["irregularities"] in "01" and row["age"].isdigit() for row in rows(root)
    )


def test_the_header_is_that_of_the_real_metadata() -> None:
    if not REAL_HAND_INFO.exists():
        pytest.skip("the real sample of 11k Hands is not here")
    with REAL_HAND_INFO.open("rb") as file:
        assert file.readline() == HEADER


def test_every_identity_has_the_promised_images_and_some_have_one_more_with_a_ring(root: Path) -> None:
    plain = [row for row in rows(root) if row["accessories"] == "0"]
    aspects = ("dorsal right", "dorsal left", "palmar right", "palmar left")
    ids = ("0000001", "0000002", "0001101", "0001102", "0001103")
    assert Counter((row["id"], row["aspectOfHand"]) for row in plain) == {(i, a): 2 for i in ids for a in aspects}
    assert Counter(row["aspectOfHand"] for row in rows(root) if row["accessories"] == "1") == dict.fromkeys(aspects, 1)
    names = [row["imageName"] for row in rows(root)]
    assert names == [f"Hand_{number:07d}.jpg" for number in range(1, len(names) + 1)]
    assert sorted(path.name for path in (root / "Hands").iterdir()) == names


def test_a_ring_changes_the_picture_on_the_finger_alone() -> None:
    from handclip.synthetic.photograph import photograph

    bare, ringed = (
        np.asarray(photograph(0, 1, "dorsal_r", WITH_RING, 160, ring), dtype=float) for ring in (False, True)
    )
    changed = np.abs(bare - ringed).max(axis=-1) > 25
    assert 10 < changed.sum() < 0.03 * changed.size


@pytest.mark.parametrize(("aspect", "thumb"), [("dorsal_r", -1), ("dorsal_l", 1), ("palmar_r", 1), ("palmar_l", -1)])
def test_the_thumb_is_on_the_side_of_a_real_hand(aspect: str, thumb: int) -> None:
    """Fingers up, the back of a right hand and the palm of a left one have their thumb to the left."""
    leans = []
    for identity in range(6):
        image = pixels(SyntheticHands(size=96), identity, aspect, 0)
        hand = image.max(axis=-1) - image.min(axis=-1) > 40
        columns = np.flatnonzero(hand.any(axis=0))
        middle = np.median(np.nonzero(hand)[1])
        leans.append((columns.max() - middle) - (middle - columns.min()))
    assert np.sign(np.mean(leans)) == thumb


def test_the_two_sides_of_a_hand_share_a_shape_and_not_a_surface() -> None:
    from handclip.synthetic.people import Person, anatomy_of

    person = Person.draw(0, 4)
    right, left = (anatomy_of(person, 0, 4, aspect) for aspect in ("dorsal_r", "dorsal_l"))
    assert np.array_equal(right.bones, anatomy_of(person, 0, 4, "palmar_r").bones)
    assert not np.array_equal(right.bones, left.bones)
    np.testing.assert_allclose(right.bones, left.bones, rtol=0.1)
    assert np.abs(pixels(SMALL, 4, "dorsal_l", 0) - pixels(SMALL, 4, "palmar_r", 0)).mean() > 3


@pytest.mark.parametrize("aspect", ["dorsal_l", "palmar_l"])
def test_photographs_of_one_person_are_alike_but_not_too_alike(aspect: str) -> None:
    hands, people, shots = SyntheticHands(size=32), 14, 3
    features = np.stack([pixels(hands, i, aspect, s).ravel() for i in range(people) for s in range(shots)])
    identity = np.repeat(np.arange(people), shots)
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    same = identity[:, None] == identity[None]
    np.fill_diagonal(same, False)
    assert distances[same].mean() < 0.97 * distances[identity[:, None] != identity[None]].mean()
    np.fill_diagonal(distances, np.inf)
    rank1 = np.mean(identity[distances.argmin(axis=1)] == identity)
    assert 1 / people < rank1 < 0.75


@pytest.mark.parametrize("start_method", ["spawn", None], indirect=True)
def test_any_number_of_processes_writes_the_same_bytes(
    root: Path, tmp_path: Path, start_method: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_POOL_FROM", 10)
    calls: list[tuple[int, int]] = []
    again = generate(tmp_path / "new" / "hands", SMALL, progress=lambda done, total: calls.append((done, total)))
    assert contents(again) == contents(root)
    assert calls == [(done, 44) for done in range(1, 45)]


def test_workers_that_die_are_done_without(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class DyingPool(ThreadPoolExecutor):
        def map(self, function: Any, *jobs: Any, timeout: float | None = None, chunksize: int = 1) -> Iterator[Any]:
            yield from (function(job) for job in jobs[0][:17])
            raise BrokenProcessPool

    monkeypatch.setattr(dataset, "_POOL_FROM", 10)
    monkeypatch.setattr(dataset, "ProcessPoolExecutor", DyingPool)
    calls: list[int] = []
    again = generate(tmp_path / "hands", SMALL, progress=lambda done, _: calls.append(done))
    assert contents(again) == contents(root)
    assert calls == list(range(1, 45))


def test_a_part_of_the_data_set_holds_the_images_of_the_whole(root: Path, tmp_path: Path) -> None:
    part = generate(tmp_path / "part", SyntheticHands(5, 1, ("palmar_l",), 48))
    whole = [r for r in rows(root) if r["aspectOfHand"] == "palmar left" and r["accessories"] == "0"][::2]
    images = [(part / "Hands" / r["imageName"]).read_bytes() for r in rows(part) if r["accessories"] == "0"]
    assert images == [(root / "Hands" / r["imageName"]).read_bytes() for r in whole]


def test_a_data_set_that_is_there_is_not_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(dataset, "_save", fail)
    assert generate(root, SMALL) == root


def test_a_folder_with_other_parameters_is_refused_and_kept(root: Path) -> None:
    before = contents(root)
    with pytest.raises(DataError, match=r"seed is 0, asked for 7.*another folder"):
        generate(root, SyntheticHands(5, 2, size=48, seed=7))
    assert contents(root) == before


def test_a_folder_that_holds_something_else_is_refused_and_an_empty_one_is_used(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    one = SyntheticHands(1, 1, ("dorsal_r",), 32)
    assert len(rows(generate(tmp_path / "mine", one))) == 2
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="holds no generated hands"):
        generate(tmp_path / "photos", one)
    with pytest.raises(HandCLIPError, match="cannot write"):
        generate(tmp_path / "photos" / "holiday.jpg" / "hands", one)


@pytest.mark.parametrize("pool_from", [10, 1000])
def test_an_interruption_leaves_nothing(tmp_path: Path, pool_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "_POOL_FROM", pool_from)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "hands", SMALL, interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"identities": 0}, "identities is 0"),
        ({"images_per_aspect": 0}, "images_per_aspect is 0"),
        ({"size": 8}, "size is 8"),
        ({"seed": -1}, "seed is -1"),
        ({"aspects": ()}, "one or more"),
        ({"aspects": ("dorsal_r", "dorsal_r")}, "different aspects"),
        ({"aspects": ("dorsal_right",)}, "Did you mean 'dorsal_r'"),
    ],
)
def test_impossible_parameters_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SyntheticHands(**wrong)  # type: ignore[arg-type]
