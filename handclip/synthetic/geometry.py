"""The bones of a hand, the way a photograph finds them posed, and the surface around them.

Lengths are in decimetres. The hand stands upright with its wrist at the origin, and its thumb points to +x: what one
sees of the back of a left hand or of the palm of a right one. The digits are thumb, index, middle, ring, little.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

THUMB, INDEX, MIDDLE, RING, LITTLE = range(5)
FINGERS = (INDEX, MIDDLE, RING, LITTLE)
DIGITS = (THUMB, *FINGERS)

# Where each digit begins: the root of the thumb's metacarpal, and the knuckles of the fingers.
_ROOTS = np.array([(0.17, 0.17), (0.27, 0.88), (0.065, 0.925), (-0.14, 0.875), (-0.315, 0.76)])
# Directions in degrees from upright towards the thumb; the fan is what a full splay of the fingers adds.
_BEARINGS = np.array([45.0, 4.0, 0.8, -2.6, -6.5])
_FAN = np.array([0.0, 9.5, 1.5, -6.5, -16.0])
# Three bones a digit; of the thumb the first is its metacarpal, which lies in the palm.
_BONES = np.array([(0.44, 0.34, 0.23), (0.46, 0.26, 0.18), (0.50, 0.29, 0.19), (0.47, 0.28, 0.18), (0.38, 0.21, 0.165)])
# Half-widths at the root, the two joints between, and the tip.
_RADII = np.array(
    [
        (0.200, 0.128, 0.104, 0.083),
        (0.112, 0.096, 0.083, 0.067),
        (0.112, 0.098, 0.086, 0.069),
        (0.108, 0.092, 0.081, 0.066),
        (0.096, 0.079, 0.069, 0.057),
    ]
)
_CARPUS = np.array([(0.13, 0.13), (0.06, 0.12), (-0.03, 0.12), (-0.12, 0.13)])
_HEEL = np.array((-0.16, 0.22))
_PALM_DEPTH = 0.115


@dataclass(frozen=True)
class Anatomy:
    """The lasting shape of one hand: `roots` (5, 2), `bearings` (5,), lengths of `bones` (5, 3), `radii` (5, 4).

    `wrist` is half the width of the wrist, and `splay` how far its owner is used to spread the fingers, from about -0.4
    (closed) to 1.
    """

    roots: Array
    bearings: Array
    bones: Array
    radii: Array
    wrist: float
    splay: float

    @classmethod
    def draw(cls, rng: np.random.Generator, stoutness: float) -> "Anatomy":
        """Draw a person's anatomy; a larger `stoutness` gives broader fingers and palm."""
        palm = np.array([1.0 + 0.06 * stoutness + 0.045 * rng.normal(), 1.0 + 0.05 * rng.normal()])
        finger_length = 1.0 + 0.065 * rng.normal()
        finger_width = 1.06 + 0.08 * stoutness + 0.045 * rng.normal()
        return cls(
            roots=_ROOTS * palm + rng.normal(0, 0.012, (5, 2)),
            bearings=_BEARINGS + rng.normal(0, 1.0, 5) + np.array([rng.normal(-2, 7.0), 0, 0, 0, 0]),
            bones=_BONES * finger_length * (1 + 0.05 * rng.normal(size=(5, 1)) + 0.03 * rng.normal(size=(5, 3))),
            radii=_RADII * finger_width * (1 + 0.035 * rng.normal(size=(5, 1)) + 0.03 * rng.normal(size=(5, 4))),
            wrist=0.28 * float(palm[0]) * (1 + 0.05 * rng.normal()),
            splay=rng.uniform(-0.3, 0.9),
        )

    def other_hand(self, rng: np.random.Generator) -> "Anatomy":
        """Return nearly the same anatomy: the two hands of a person differ by about one percent."""
        return Anatomy(
            roots=self.roots + rng.normal(0, 0.005, (5, 2)),
            bearings=self.bearings + rng.normal(0, 0.7, 5),
            bones=self.bones * (1 + 0.012 * rng.normal(size=(5, 3))),
            radii=self.radii * (1 + 0.012 * rng.normal(size=(5, 4))),
            wrist=self.wrist * (1 + 0.01 * rng.normal()),
            splay=self.splay,
        )


@dataclass(frozen=True)
class Pose:
    """One hand at one moment: `joints` (5, 4, 2) from root to tip, `radii` (5, 4), and the direction of the `elbow`."""

    joints: Array
    radii: Array
    wrist: float
    elbow: Array

    @classmethod
    def draw(cls, anatomy: Anatomy, rng: np.random.Generator) -> "Pose":
        """Pose the hand: splay and bend the fingers, tilt them towards the camera, turn the wrist."""
        splay = np.clip(anatomy.splay + rng.normal(0, 0.22), -0.4, 1.0)
        bearings = anatomy.bearings + _FAN * splay + rng.normal(0, 1.2, 5)
        bearings[THUMB] += rng.normal(0, 4.5)
        bends = rng.normal(0, 1.8, (5, 3)) + np.array([(0, -13, 2), (0, -1, -1), (0, 0, 0), (0, 1, 1), (0, 2.5, 1.5)])
        bends[:, 0] = bearings
        bends[THUMB, 1:] += rng.normal(0, 3.5, 2)
        headings = np.radians(np.cumsum(bends, axis=1))
        tilt = np.radians(np.abs(rng.normal(0, 8.0, (5, 1))) * np.array([0.6, 1.0, 1.5]))
        steps = (anatomy.bones * np.cos(tilt))[..., None] * np.stack([np.sin(headings), np.cos(headings)], axis=-1)
        joints = anatomy.roots[:, None] + np.concatenate([np.zeros((5, 1, 2)), np.cumsum(steps, axis=1)], axis=1)
        turn = np.radians(rng.normal(0, 7.0))
        return cls(joints, anatomy.radii, anatomy.wrist, np.array([np.sin(turn), -np.cos(turn)]))

    def on_digit(self, digit: int, along: Array, across: Array) -> Array:
        """Return points (n, 2) of a digit: `along` (n,) counts bones from its root, `across` (n,) goes from -1 to 1."""
        bone = np.clip(along.astype(int), 0, 2)
        part = (along - bone)[:, None]
        joints, radii = self.joints[digit], self.radii[digit]
        step = joints[bone + 1] - joints[bone]
        side = np.stack([step[:, 1], -step[:, 0]], axis=-1) / np.linalg.norm(step, axis=-1, keepdims=True)
        half_width = radii[bone] + part[:, 0] * (radii[bone + 1] - radii[bone])
        return np.asarray(joints[bone] + part * step + side * (across * half_width)[:, None])


def surface(pose: Pose, x: Array, y: Array) -> tuple[Array, Array]:
    """Return the signed distance to the outline (negative inside) and the height of the skin at points of the hand.

    Every bone is a capsule that tapers. Those of the palm melt into one another and into each finger, as flesh does;
    fingers do not melt into one another.
    """
    bones = [
        [_capsule(x, y, *ends, *radii) for ends, radii in zip(pairwise(joints), pairwise(radii), strict=True)]
        for joints, radii in zip(pose.joints, pose.radii.tolist(), strict=True)
    ]
    palm_parts = [bones[THUMB][0], *(_capsule(x, y, *capsule) for capsule in _palm(pose))]
    palm = reduce(lambda a, b: _soft_min(a, b, 0.09), (axis - radius for axis, radius in palm_parts))
    palm_height = _PALM_DEPTH * np.sqrt(1 - np.clip(1 + palm / _PALM_DEPTH, 0, 1) ** 2)

    outline, height = palm, palm_height
    for digit in DIGITS:
        finger = reduce(lambda a, b: _soft_min(a, b, 0.03), (axis - radius for axis, radius in bones[digit]))
        outline = np.minimum(outline, _soft_min(palm, finger, 0.07))
        free = bones[THUMB][1:] if digit == THUMB else bones[digit]
        squared = reduce(np.maximum, (radius**2 - axis**2 for axis, radius in free))
        height = np.maximum(height, -_soft_min(-palm_height, -np.sqrt(np.maximum(squared, 0)), 0.06))
    return outline, height


def _palm(pose: Pose) -> Iterator[tuple[Array, Array, float, float]]:
    """Yield the capsules of the metacarpals, the ball of the little finger, the webs between fingers, and the arm."""
    knuckles = pose.joints[1:, 0]
    webs = knuckles + 0.27 * (pose.joints[1:, 1] - knuckles)
    yield from zip(_CARPUS, knuckles, (0.15, 0.14, 0.14, 0.15), (0.12, 0.11, 0.11, 0.10), strict=True)
    yield _HEEL, 0.25 * _HEEL + 0.75 * knuckles[-1], 0.15, 0.11
    yield from zip(webs[:-1], webs[1:], (0.08, 0.08, 0.07), (0.08, 0.07, 0.065), strict=True)
    yield np.array((0.0, 0.08)), 2.6 * pose.elbow, pose.wrist, 1.5 * pose.wrist


def _capsule(
    x: Array, y: Array, start: Array, end: Array, start_radius: float, end_radius: float
) -> tuple[Array, Array]:
    """Return the distance to the axis of a tapering capsule, and the radius where that axis is nearest."""
    # Python's floats leave the arrays in single precision.
    (start_x, start_y), (step_x, step_y) = start.tolist(), (end - start).tolist()
    x, y = x - start_x, y - start_y
    along = np.clip((x * step_x + y * step_y) * (1 / (step_x**2 + step_y**2)), 0, 1)
    axis = np.sqrt((x - along * step_x) ** 2 + (y - along * step_y) ** 2)
    return axis, float(start_radius) + along * float(end_radius - start_radius)


def _soft_min(a: Array, b: Array, reach: float) -> Array:
    """Return the minimum, rounded off where the two are within `reach` (the quadratic smooth minimum)."""
    overlap = np.maximum(reach - np.abs(a - b), 0)
    return np.asarray(np.minimum(a, b) - overlap**2 / (4 * reach))
