"""A data set of generated hands, laid out as 11k Hands is: `Hands/Hand_0000001.jpg` and `HandInfo.csv`."""

import csv
import io
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from handclip.cores import available_cores
from handclip.errors import ConfigError, DataError, did_you_mean
from handclip.files import making, write_json, write_text
from handclip.synthetic.people import ASPECTS, Person
from handclip.synthetic.photograph import photograph

# Raise it whenever the same parameters would give other images.
GENERATOR_VERSION = 1

# Shots are numbered from here on when the hand wears a ring; every tenth person has one such photograph of each aspect,
# so that the rule "accessories are left out" has something to leave out.
WITH_RING = 1000
_RING_EVERY = 10

_COLUMNS = "id,age,gender,skinColor,accessories,nailPolish,aspectOfHand,imageName,irregularities"
_ASPECT_NAMES = dict(zip(ASPECTS, ("dorsal right", "dorsal left", "palmar right", "palmar left"), strict=True))
# 11k Hands sends ids up to about 1040 to training and larger ones to test.
_FIRST_TEST_ID = 1101
_MAX_IDENTITIES = 2000

_POOL_FROM = 100
_JPEG_QUALITY = 92

_RECORD = "synthetic.json"
"""Says what was generated."""


@dataclass(frozen=True)
class SyntheticHands:
    """What to generate: `images_per_aspect` square photographs, `size` pixels wide, of each identity and aspect.

    The first half of the identities has ids that 11k's rule sends to training, the second half ids that it sends to
    test. One image depends on `seed` and `size` and on its own identity, aspect and shot, never on the other fields.

    Raises:
        ConfigError: a number is out of range, or an aspect is unknown, missing or given twice.
    """

    identities: int = 60
    images_per_aspect: int = 10
    aspects: tuple[str, ...] = ASPECTS
    size: int = 160
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("identities", 1, _MAX_IDENTITIES),
            ("images_per_aspect", 1, WITH_RING),
            ("size", 32, 2048),
            ("seed", 0, 2**32 - 1),
        ):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"synthetic hands: {name} is {getattr(self, name)}; it must be from {low} to {high}.")
        for aspect in self.aspects:
            if aspect not in ASPECTS:
                raise ConfigError(f"synthetic hands: there is no aspect '{aspect}'.{did_you_mean(aspect, ASPECTS)}")
        if len(set(self.aspects)) != len(self.aspects) or not self.aspects:
            raise ConfigError(f"synthetic hands: aspects must name one or more different aspects, not {self.aspects}.")


def render_hand(hands: SyntheticHands, identity: int, aspect: str, shot: int) -> Image.Image:
    """Return one RGB photograph; `identity` and `shot` count from 0, and shots from `WITH_RING` on wear a ring."""
    return photograph(hands.seed, identity, aspect, shot, hands.size, ring=shot >= WITH_RING)


def generate(root: Path, hands: SyntheticHands, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write the data set under `root` and return it; where it is already there, return at once.

    The folder appears under its name only when it is complete. Besides the promised images there is one with a ring,
    and `accessories` 1, of each aspect of every tenth identity. More than about a hundred images are shared out among
    processes, with the same result.

    Args:
        root: a new or empty folder, or one that an earlier call wrote.
        hands: what to generate.
        progress: called with the images done and the images in all.

    Raises:
        DataError: the folder holds something else, or hands generated from other parameters.
        HandCLIPError: the folder cannot be written.
    """
    record = json.loads(json.dumps({"generator_version": GENERATOR_VERSION, **asdict(hands)}))
    if _is_generated(root, record):
        return root
    with _building(root, record) as folder:
        (folder / "Hands").mkdir()
        shots = list(_shots(hands))
        jobs = [
            (hands, identity, aspect, shot, folder / "Hands" / _image_name(number))
            for number, (identity, aspect, shot) in enumerate(shots, start=1)
        ]
        for done, _ in enumerate(_in_processes(_save, jobs), start=1):
            if progress is not None:
                progress(done, len(jobs))
        write_text(folder / "HandInfo.csv", _hand_info(hands, shots))
        write_json(folder / _RECORD, record)
    return root


def is_generated(root: Path) -> bool:
    """Whether `root` holds generated hands, whatever their parameters."""
    return (root / _RECORD).is_file()


def _shots(hands: SyntheticHands) -> Iterator[tuple[int, str, int]]:
    """Yield identity, aspect and shot of every image, in the order of their numbers."""
    for identity in range(hands.identities):
        for aspect in hands.aspects:
            for shot in range(hands.images_per_aspect):
                yield identity, aspect, shot
            if identity % _RING_EVERY == 0:
                yield identity, aspect, WITH_RING


def _save(job: tuple[SyntheticHands, int, str, int, Path]) -> None:
    hands, identity, aspect, shot, path = job
    render_hand(hands, identity, aspect, shot).save(path, quality=_JPEG_QUALITY)


def _in_processes(function: Callable[[Any], None], jobs: list[Any]) -> Iterator[None]:
    """Call `function` on every job, on all available cores where that pays; results come in order."""
    cores = available_cores()
    if cores == 1 or len(jobs) <= _POOL_FROM:
        yield from map(function, jobs)
        return
    done = 0
    try:
        with ProcessPoolExecutor(max_workers=cores, initializer=_end_with_parent) as pool:
            for _ in pool.map(function, jobs, chunksize=8):
                done += 1
                yield
    except BrokenProcessPool:
        # Workers cannot start where they cannot import the main script: one read from standard input, say.
        yield from map(function, jobs[done:])


def _end_with_parent() -> None:
    """Let a process of the pool end with the one that started it, whose being killed it would not notice."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _hand_info(hands: SyntheticHands, shots: list[tuple[int, str, int]]) -> str:
    """Return `HandInfo.csv`: texts quoted, numbers bare, the header neither, CRLF, as in the original."""
    people = [Person.draw(hands.seed, identity) for identity in range(hands.identities)]
    text = io.StringIO()
    text.write(_COLUMNS + "\r\n")
    table = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n")
    for number, (identity, aspect, shot) in enumerate(shots, start=1):
        person, dorsal = people[identity], aspect.startswith("dorsal")
        table.writerow(
            [
                _identity_id(hands, identity),
                person.age,
                person.gender,
                person.skin_colour,
                int(shot >= WITH_RING),
                int(dorsal and person.polish is not None),
                _ASPECT_NAMES[aspect],
                _image_name(number),
                int(dorsal and person.scarred),
            ]
        )
    return text.getvalue()


def _identity_id(hands: SyntheticHands, identity: int) -> str:
    training = hands.identities // 2
    return f"{identity + 1 if identity < training else _FIRST_TEST_ID + identity - training:07d}"


def _image_name(number: int) -> str:
    return f"Hand_{number:07d}.jpg"


def _is_generated(root: Path, record: dict[str, Any]) -> bool:
    """Tell whether `root` already holds the hands of `record`; raise where it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{root} exists and holds no generated hands: choose another folder, or remove this one.")
    if found != record:
        differing = "; ".join(
            f"{key} is {found.get(key)}, asked for {record.get(key)}"
            for key in sorted(found.keys() | record.keys())
            if found.get(key) != record.get(key)
        )
        raise DataError(
            f"{root} holds synthetic hands made from other parameters ({differing}): "
            "choose another folder, or remove this one to generate it anew."
        )
    return True


@contextmanager
def _building(root: Path, record: dict[str, Any]) -> Iterator[Path]:
    """Yield a folder beside `root` that takes its name on success and is removed otherwise."""
    root = root.absolute()
    with making(root, folder=True) as folder:
        yield folder
        try:
            folder.replace(root)
        except OSError:
            # Another process may have generated the same hands meanwhile.
            if not _is_generated(root, record):
                raise
