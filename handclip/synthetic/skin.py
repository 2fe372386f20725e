"""What is written on the skin: creases, wrinkles, veins, nails, moles, drawn as soft-edged layers."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from handclip.synthetic.geometry import FINGERS, LITTLE, RING, THUMB, Array, Pose
from handclip.synthetic.people import Person

_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Camera:
    """Where points of the hand fall in the picture: `pixels = points @ matrix.T + offset`."""

    matrix: Array
    offset: Array
    size: int

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int, mirrored: bool) -> "Camera":
        """Aim at a hand that fills most of a square picture of `size` pixels, turned and seen a little aslant."""
        turn, slant = np.radians(np.clip(rng.normal(0, 7.0), -25, 25)), rng.uniform(0, np.pi)
        squeeze = np.diag([1.0, np.cos(np.radians(min(abs(rng.normal(0, 10.0)), 25)))])
        upright = np.diag([-1.0 if mirrored else 1.0, -1.0])
        matrix = (
            size
            * rng.uniform(0.375, 0.425)
            * _rotation(turn)
            @ _rotation(slant)
            @ squeeze
            @ _rotation(-slant)
            @ upright
        )
        middle = size * np.array([0.5, 0.53]) + size * rng.uniform(-0.035, 0.035, 2)
        return cls(matrix, middle - matrix @ np.array([0.07, 0.92]), size)

    @cached_property
    def pixels_per_unit(self) -> float:
        """Pixels to a decimetre."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix))))

    def grid(self) -> tuple[Array, Array]:
        """Return the x and the y of the point under each pixel's centre, each (size, size)."""
        inverse = np.linalg.inv(self.matrix)
        columns = (np.arange(self.size) + 0.5 - self.offset[0])[None, :]
        rows = (np.arange(self.size) + 0.5 - self.offset[1])[:, None]
        x, y = (a * columns + b * rows for a, b in inverse)
        return x.astype(np.float32), y.astype(np.float32)


class Layer:
    """A mask from 0 to 1 to draw on in the hand's own units, antialiased by supersampling."""

    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        side = camera.size * _SUPERSAMPLING
        self._image = Image.new("L", (side, side))
        self._draw = ImageDraw.Draw(self._image)

    def line(self, points: Array, width: float, strength: float, tapered: bool = True) -> None:
        """Draw a polyline (n, 2) that fades towards both ends where `tapered`."""
        corners = self._corners(points)
        thickness = max(1, round(width * self._camera.pixels_per_unit * _SUPERSAMPLING))
        if not tapered:
            self._draw.line(corners, fill=round(255 * strength), width=thickness)
            return
        fades = np.sin(np.pi * np.arange(1, len(corners)) / len(corners)) ** 0.6
        for start, end, fade in zip(corners[:-1], corners[1:], (255 * strength * fades).tolist(), strict=True):
            self._draw.line((start, end), fill=round(fade), width=thickness)

    def shape(self, points: Array, strength: float) -> None:
        """Fill a polygon (n, 2)."""
        self._draw.polygon(self._corners(points), fill=round(255 * strength))

    def spot(self, centre: Array, radius: float, strength: float) -> None:
        """Fill a disc."""
        angles = np.linspace(0, 2 * np.pi, 13)[:-1]
        self.shape(centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1), strength)

    def array(self, softness: float = 0.0) -> Array:
        """Return the mask (size, size), its edges blurred over `softness` units."""
        image = self._image.reduce(_SUPERSAMPLING)
        if softness:
            image = image.filter(ImageFilter.GaussianBlur(softness * self._camera.pixels_per_unit))
        return np.asarray(image, dtype=np.float32) / 255

    def _corners(self, points: Array) -> list[tuple[float, float]]:
        pixels = (points @ self._camera.matrix.T + self._camera.offset) * _SUPERSAMPLING
        return [(x, y) for x, y in pixels.tolist()]


class Skin:
    """The layers of one view of a hand, each (size, size) from 0 to 1, and the colours that two of them carry.

    `creases` are dark and sunken, `ridges` raised, `veins` raised and bluish, `pigment` brown, `blush` red, `nails` and
    their free `edges`, `metal` a ring.
    """

    def __init__(self, person: Person, pose: Pose, camera: Camera, rng: np.random.Generator, dorsal: bool) -> None:
        self._person, self._pose, self._rng = person, pose, rng
        self._creases, self._ridges, self._veins, self._pigment = (Layer(camera) for _ in range(4))
        self._blush, self._nails, self._edges, self._metal = (Layer(camera) for _ in range(4))
        self._back() if dorsal else self._palm()
        self._moles(dorsal)

    def wear_ring(self) -> None:
        """Put a ring on the ring finger."""
        self._metal.line(self._arc(RING, 0.62, 0.03, reach=1.08), 0.05, 1.0, tapered=False)

    def render(self) -> dict[str, Array]:
        """Return the finished layers by name."""
        return {
            "creases": self._creases.array(0.006),
            "ridges": self._ridges.array(0.035),
            "veins": self._veins.array(0.014),
            "pigment": self._pigment.array(0.008),
            "blush": self._blush.array(0.05),
            "nails": self._nails.array(),
            "edges": self._edges.array(),
            "metal": self._metal.array(),
        }

    def _back(self) -> None:
        rng, pose, person = self._rng, self._pose, self._person
        for finger in FINGERS:
            for joint, wrinkles, spacing in ((1.0, person.wrinkles, 0.055), (2.0, person.wrinkles - 2, 0.05)):
                for i in range(wrinkles):
                    offset = i - (wrinkles - 1) / 2
                    reach = rng.uniform(0.5, 0.8) - 0.08 * abs(offset)
                    arc = self._arc(finger, joint + spacing * (offset + rng.normal(0, 0.15)), 0.05 * offset, reach)
                    self._creases.line(arc, 0.012, rng.uniform(0.35, 0.75) * person.crease_depth)
                self._blush.spot(self._spot(finger, joint), 0.07 if joint == 1 else 0.05, rng.uniform(0.4, 0.9))
            self._blush.spot(pose.joints[finger, 0], 0.09, rng.uniform(0.2, 0.7))
            self._ridges.spot(pose.joints[finger, 0], 0.07, rng.uniform(0.5, 0.9))
            start = np.array([0.12 - 0.07 * finger, 0.2])
            self._ridges.line(np.linspace(start, pose.joints[finger, 0], 8), 0.03, 0.5 * rng.uniform(0.2, 1.0))
        for i in range(3):
            self._creases.line(self._arc(THUMB, 1.97 + 0.06 * i + rng.normal(0, 0.01), 0.03, 0.6), 0.012, 0.4)
        for digit in (THUMB, *FINGERS):
            self._nail(digit)
        self._vein_tree()
        if person.scarred:
            centre = rng.uniform((-0.2, 0.3), (0.2, 0.7))
            self._creases.line(_wavy(centre, centre + rng.uniform(-0.25, 0.25, 2), rng, 0.01), 0.02, 0.7)

    def _palm(self) -> None:
        rng, pose, person = self._rng, self._pose, self._person
        lines = person.palm_lines + rng.normal(0, 0.015, person.palm_lines.shape)
        for line, width, strength in zip(lines, (0.02, 0.017, 0.018, 0.012), (1.0, 0.9, 0.95, 0.4), strict=True):
            self._creases.line(_bezier(line), width, strength * person.crease_depth)
        for _ in range(int(rng.integers(8, 16))):
            centre = rng.uniform((-0.3, 0.15), (0.28, 0.85))
            self._creases.line(
                _wavy(centre, centre + rng.normal(0, 0.11, 2), rng, 0.008), 0.009, rng.uniform(0.15, 0.5)
            )
        for finger in FINGERS:
            for joint, count in ((0.46, 2), (1.0, 2), (1.97, 1)):
                for i in range(count):
                    arc = self._arc(finger, joint + 0.045 * i + rng.normal(0, 0.01), 0.02, rng.uniform(0.75, 0.95))
                    self._creases.line(arc, 0.014, rng.uniform(0.5, 0.9) * person.crease_depth)
            self._blush.spot(self._spot(finger, 2.7), 0.07, rng.uniform(0.5, 1.0))
            self._blush.spot(self._spot(finger, 0.1), 0.10, rng.uniform(0.2, 0.6))
        for joint in (1.05, 2.0, 2.06):
            self._creases.line(
                self._arc(THUMB, joint + rng.normal(0, 0.015), 0.02, 0.8), 0.013, 0.6 * person.crease_depth
            )
        for height in (0.0, -0.05):
            ends = np.array([(-0.21, height), (0.23, height + 0.01)]) + rng.normal(0, 0.015, (2, 2))
            self._creases.line(_wavy(ends[0], ends[1], rng, 0.006), 0.012, rng.uniform(0.2, 0.6))
        self._ridges.line(
            np.linspace((0.18, 0.25), 0.5 * (pose.joints[THUMB, 0] + pose.joints[THUMB, 1]), 6), 0.24, 0.8
        )
        self._ridges.line(np.array([(-0.24, 0.2), (-0.28, 0.35), (-0.28, 0.5), (-0.27, 0.6)]), 0.15, 0.6)
        self._blush.spot(np.array([-0.26, 0.35]), 0.14, rng.uniform(0.3, 0.8))
        self._blush.spot(np.array([0.25, 0.35]), 0.16, rng.uniform(0.3, 0.8))

    def _nail(self, digit: int) -> None:
        rng = self._rng
        length, breadth, edge = rng.uniform(0.9, 1.1), rng.uniform(0.68, 0.8), rng.uniform(0.03, 0.16)
        aside = -0.12 if digit == THUMB else 0.0
        angles = np.linspace(0, 2 * np.pi, 25)[:-1]
        # A superellipse: nails are rounded rectangles.
        across = breadth * np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** 0.6 + aside
        rise = np.sign(np.sin(angles)) * np.abs(np.sin(angles)) ** 0.7
        along = 2.85 + 0.36 * length * rise
        self._nails.shape(self._pose.on_digit(digit, along, across), 1.0)
        self._edges.shape(self._pose.on_digit(digit, np.maximum(along, 3.12 - edge), across), 1.0)

    def _vein_tree(self) -> None:
        rng, strength = self._rng, self._person.vein_strength
        for start_x in rng.uniform(-0.2, 0.2, 3):
            start = np.array([start_x, rng.uniform(-0.1, 0.15)])
            fork = start + np.array([rng.normal(-0.03, 0.07), rng.uniform(0.25, 0.4)])
            self._veins.line(_wavy(start, fork, rng, 0.02), 0.03, strength)
            for finger in rng.permutation(FINGERS[:-1])[:2]:
                gap = self._pose.joints[[finger, finger + 1], 0].mean(axis=0)
                self._veins.line(_wavy(fork, gap, rng, 0.025), 0.022, 0.8 * strength)

    def _moles(self, dorsal: bool) -> None:
        rng = self._rng
        for _ in range(rng.poisson((1 + 5 * self._person.freckled) if dorsal else 0.4)):
            if rng.random() < 0.6:
                centre = rng.uniform((-0.3, -0.2), (0.27, 0.85))
            else:
                centre = self._spot(int(rng.integers(1, LITTLE + 1)), rng.uniform(0.3, 2.3), rng.uniform(-0.6, 0.6))
            self._pigment.spot(centre, rng.uniform(0.008, 0.022), rng.uniform(0.5, 1.0))

    def _arc(self, digit: int, along: float, sagitta: float, reach: float) -> Array:
        """Return a line across a digit, curved towards its tip by `sagitta` bones in the middle."""
        across = np.linspace(-reach, reach, 9)
        return self._pose.on_digit(digit, along + sagitta * (1 - (across / reach) ** 2), across)

    def _spot(self, digit: int, along: float, across: float = 0.0) -> Array:
        return np.asarray(self._pose.on_digit(digit, np.array([along]), np.array([across]))[0])


def _rotation(angle: float) -> Array:
    return np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])


def _bezier(controls: Array) -> Array:
    """Return 16 points of the cubic Bézier curve with four control points."""
    t = np.linspace(0, 1, 16)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    return np.asarray(weights @ controls)


def _wavy(start: Array, end: Array, rng: np.random.Generator, unrest: float) -> Array:
    """Return a curve from `start` to `end` that strays by about `unrest`."""
    controls = np.linspace(start, end, 4)
    controls[1:3] += rng.normal(0, 3 * unrest, (2, 2))
    return _bezier(controls)
