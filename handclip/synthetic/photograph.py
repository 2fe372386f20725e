"""A photograph of a hand: light on the skin, a shadow on a pale background, and what the camera adds."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from handclip.synthetic.geometry import Array, Pose, surface
from handclip.synthetic.people import Person, anatomy_of, marks_rng, shot_rng
from handclip.synthetic.skin import Camera, Skin


def _rgb(*values: npt.ArrayLike) -> Array:
    return np.array(values, dtype=np.float32)


_PALM = _rgb(1.0, 0.80, 0.72)
_NAIL = _rgb(0.95, 0.78, 0.76)
_NAIL_EDGE = _rgb(0.96, 0.92, 0.88)
_GOLD = _rgb(0.85, 0.70, 0.38)
# What a layer of the skin takes away from each colour at full strength.
_STAINS = {
    "blush": _rgb(0.015, 0.15, 0.15),
    "veins": _rgb(0.16, 0.09, 0.05),
    "pigment": _rgb(0.40, 0.50, 0.52),
    "creases": _rgb(0.32, 0.46, 0.49),
}
# Light scatters under the skin, so that it grows redder, and not just darker, where it turns away.
_SHADE = _rgb(0.80, 1.08, 1.18)


def photograph(seed: int, identity: int, aspect: str, shot: int, size: int, ring: bool) -> Image.Image:
    """Return one RGB photograph of `size` x `size` pixels; it depends on nothing but the arguments."""
    person = Person.draw(seed, identity)
    dorsal = aspect.startswith("dorsal")
    rng = shot_rng(seed, identity, aspect, shot)
    pose = Pose.draw(anatomy_of(person, seed, identity, aspect), rng)
    # Seen from the back the left hand has its thumb to the right; seen from the palm, the right hand.
    camera = Camera.draw(rng, size, mirrored=aspect in ("dorsal_r", "palmar_l"))
    light = _light(rng)

    marks = marks_rng(seed, identity, aspect)
    skin = Skin(person, pose, camera, marks, dorsal)
    if ring:
        skin.wear_ring()
    layers = skin.render()
    x, y = camera.grid()
    outline, height = surface(pose, x, y)
    height += 0.035 * layers["ridges"] + 0.010 * person.vein_strength * layers["veins"] - 0.012 * layers["creases"]
    height += 0.012 * layers["nails"] + 0.05 * layers["metal"]

    scale = camera.pixels_per_unit
    shade = _shading(_blur(height, 0.012 * scale) * scale, light, size)[..., None]
    gloss = np.clip(shade - 1, 0, 1) * (0.12 + 0.5 * layers["nails"] + 0.8 * layers["metal"])[..., None]
    hand = _albedo(person, layers, dorsal, _mottle(x, y, marks)) * shade**_SHADE + gloss
    cover = np.clip(0.5 - outline * scale, 0, 1)
    background = _background(rng, cover, light, size)
    return _expose(background + cover[..., None] * (hand - background), rng, size)


def _light(rng: np.random.Generator) -> Array:
    """Return the unit vector to the light, in the picture's axes (y down) and towards the camera."""
    direction, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(48, 80))
    return _rgb(np.cos(direction) * np.cos(elevation), np.sin(direction) * np.cos(elevation), np.sin(elevation))


def _shading(height: Array, light: Array, size: int) -> Array:
    """Return how bright the skin is, 1 where it lies flat and in the open; `height` is in pixels."""
    slope_y, slope_x = np.gradient(0.65 * height)
    facing = (light[2] - light[0] * slope_x - light[1] * slope_y) / np.sqrt(1 + slope_x**2 + slope_y**2)
    hollow = np.clip(_blur(height, 0.022 * size) - height, 0, None) / size
    return np.asarray(np.clip(0.55 + 0.45 * facing / light[2] - 5.0 * hollow, 0.2, 1.3))


def _albedo(person: Person, layers: dict[str, Array], dorsal: bool, mottle: Array) -> Array:
    """Return the colour of the hand in even light (size, size, 3)."""
    skin = person.skin.astype(np.float32)
    # Palms are nearly alike in people of every colour.
    base = skin if dorsal else 0.5 * skin + 0.5 * _PALM * skin.mean() ** 0.2
    colour = base * (1 + mottle[..., None] * _rgb(0.017, 0.028, 0.031))
    for name, stain in _STAINS.items():
        colour *= 1 - layers[name][..., None] * stain
    nail = 0.55 * skin + 0.45 * _NAIL if person.polish is None else _rgb(*person.polish)
    edge = 0.35 * nail + 0.65 * _NAIL_EDGE if person.polish is None else nail
    for name, paint in (("nails", nail), ("edges", edge), ("metal", _GOLD)):
        if layers[name].any():
            colour += layers[name][..., None] * (paint - colour)
    return np.asarray(colour)


def _mottle(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Return the cloudy unevenness of the skin, about -1 to 1: a sum of waves that belong to the hand."""
    waves = rng.normal(0, (9.0, 9.0, 2 * np.pi), (7, 3)).tolist()
    return np.asarray(sum(np.cos(a * x + b * y + phase) for a, b, phase in waves) / 2.6)


def _background(rng: np.random.Generator, cover: Array, light: Array, size: int) -> Array:
    """Return a pale, unevenly lit background with the soft shadow of the hand (size, size, 3)."""
    paper = rng.uniform(0.95, 1.02) - np.abs(rng.normal(0, 0.012, 3))
    if rng.random() < 0.12:
        paper = paper * rng.uniform(0.82, 0.96) * (1 - np.abs(rng.normal(0, 0.03, 3)))
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    tilt_x, tilt_y = rng.normal(0, 0.03, 2).tolist()
    uneven = 1 + tilt_x * ramp[None, :] + tilt_y * ramp[:, None]
    mask = Image.fromarray((255 * cover).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.03 * size))
    shift_x, shift_y = np.round(-light[:2] / light[2] * 0.07 * size).astype(int)
    rows, columns = (np.clip(np.arange(size) - shift, 0, size - 1) for shift in (shift_y, shift_x))
    shadow = np.asarray(mask, dtype=np.float32)[rows[:, None], columns, None] / 255
    return np.asarray(uneven[..., None] * _rgb(*paper) * (1 - rng.uniform(0.08, 0.35) * shadow * _rgb(1.0, 0.96, 0.92)))


def _expose(picture: Array, rng: np.random.Generator, size: int) -> Image.Image:
    """Return what the camera stores: exposure, white balance, focus and noise."""
    warmth = rng.normal(0, 0.015)
    gains = rng.uniform(1.0, 1.15) * _rgb(1 + warmth, 1.0, 1 - warmth)
    exposed = np.clip(picture ** float(rng.uniform(0.94, 1.06)) * gains.astype(np.float32), 0, 1)
    image = Image.fromarray((255 * exposed).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(rng.uniform(0, 0.006) * size)
    )
    noise = float(rng.uniform(0.8, 3.5)) * rng.standard_normal((size, size, 3), dtype=np.float32)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _blur(values: Array, sigma: float) -> Array:
    """Return a Gaussian blur of a two-dimensional array; PIL's works on eight bits, too coarse for slopes."""
    reach = int(np.ceil(2.5 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for _ in range(2):
        # Along the rows, and once more along what were the columns.
        padded = np.pad(values, ((reach, reach), (0, 0)), mode="edge")
        values = sum(weight * padded[i : i + len(values)] for i, weight in enumerate(kernel.tolist())).T
    return values
