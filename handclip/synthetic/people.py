"""Who the hands belong to: everything about an identity that its photographs share."""

from dataclasses import dataclass

import numpy as np

from handclip.config.experiment import HAND_ASPECTS
from handclip.synthetic.geometry import Anatomy, Array

ASPECTS = HAND_ASPECTS

# Names and shares as in 11k Hands; the tones run from the lighter to the darker end of each.
_SKIN_COLOURS = ("very fair", "fair", "medium", "dark")
_SKIN_SHARES = (0.05, 0.32, 0.52, 0.11)
_SKIN_TONES = np.array([(244, 208, 188), (236, 190, 163), (220, 168, 136), (184, 130, 96), (112, 73, 54)]) / 255
_POLISHES = np.array([(150, 20, 45), (205, 40, 70), (235, 150, 165), (70, 25, 60), (45, 60, 120), (230, 110, 80)]) / 255

# Life, head, heart and fate line, each a cubic Bézier curve.
_PALM_LINES = np.array(
    [
        [(0.37, 0.69), (0.13, 0.66), (-0.03, 0.38), (0.08, 0.05)],
        [(0.37, 0.70), (0.13, 0.70), (-0.06, 0.60), (-0.30, 0.42)],
        [(-0.40, 0.66), (-0.16, 0.64), (0.07, 0.72), (0.14, 0.97)],
        [(-0.02, 0.16), (0.03, 0.35), (-0.02, 0.50), (0.03, 0.76)],
    ]
)


# The first number of every random seed says what is drawn: numpy pads short seeds with zeros, so without it (1, 2) and
# (1, 2, 0) would be the same stream.
_PERSON, _SIDE, _MARKS, _SHOT = range(1, 5)


@dataclass(frozen=True)
class Person:
    """One identity: the columns of `HandInfo.csv`, the skin (RGB, 0 to 1) and the base of what both hands show."""

    age: int
    gender: str
    skin_colour: str
    skin: Array
    polish: Array | None
    scarred: bool
    anatomy: Anatomy
    palm_lines: Array
    crease_depth: float
    wrinkles: int
    vein_strength: float
    freckled: float

    @classmethod
    def draw(cls, seed: int, identity: int) -> "Person":
        """Draw the person numbered `identity`."""
        rng = np.random.default_rng([_PERSON, seed, identity])
        male = rng.random() < 0.4
        group = int(rng.choice(4, p=_SKIN_SHARES))
        darkness = rng.random()
        skin = _SKIN_TONES[group] * (1 - darkness) + _SKIN_TONES[group + 1] * darkness
        polished = not male and rng.random() < 0.3
        return cls(
            age=int(rng.choice([19, 20, 21, 22, 23, 24, 27, 35, 48, 63])),
            gender="male" if male else "female",
            skin_colour=_SKIN_COLOURS[group],
            skin=skin * (1 + rng.normal(0, (0.02, 0.02, 0.04))),
            polish=_POLISHES[rng.integers(len(_POLISHES))] if polished else None,
            scarred=bool(rng.random() < 0.05),
            anatomy=Anatomy.draw(rng, stoutness=0.6 * male + rng.normal(-0.2, 0.8)),
            palm_lines=_PALM_LINES + rng.normal(0, 0.035, _PALM_LINES.shape),
            crease_depth=rng.uniform(0.45, 1.0),
            wrinkles=int(rng.integers(3, 6)),
            vein_strength=rng.uniform(0.1, 0.9) * (1.0 if male else 0.6),
            freckled=rng.uniform(0, 1) ** 2,
        )


def anatomy_of(person: Person, seed: int, identity: int, aspect: str) -> Anatomy:
    """Return the anatomy of the hand that `aspect` shows; its dorsal and palmar views share it."""
    side = ("r", "l").index(aspect[-1])
    return person.anatomy.other_hand(np.random.default_rng([_SIDE, seed, identity, side]))


def marks_rng(seed: int, identity: int, aspect: str) -> np.random.Generator:
    """Return the source of what is drawn on the skin of one aspect: the same in every photograph of it."""
    return np.random.default_rng([_MARKS, seed, identity, ASPECTS.index(aspect)])


def shot_rng(seed: int, identity: int, aspect: str, shot: int) -> np.random.Generator:
    """Return the source of what changes from photograph to photograph."""
    return np.random.default_rng([_SHOT, seed, identity, ASPECTS.index(aspect), shot])
