"""Random changes to training photographs: drawn image by image, applied to a whole batch on any device.

What changes is drawn from each image's own seed by torchvision's transforms, so that it depends neither on the order of
the images, nor on worker processes, nor on the device. It is applied to the batch at once: on a GPU that takes a few
launches, and on a CPU it is several times as fast as one image after the other. On a CPU the result is, bit by bit,
that of torchvision's RandomAffine, RandomCrop, RandomHorizontalFlip and ColorJitter, one after the other; a GPU may
round a level otherwise.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from handclip.config.experiment import Augmentation

Draws = NDArray[np.float64]
"""(B, len(Draw._fields)) what was drawn for each image of a batch."""


class Draw(NamedTuple):
    """What was drawn for one image."""

    cos: float = 1.0
    """Of the rotation's angle, divided by the zoom; likewise `sin`."""
    sin: float = 0.0
    top: float = 0.0
    """First row of the crop, in pixels of the rotated image; `left` is the first column."""
    left: float = 0.0
    flip: float = 0.0
    first: float = 0.0
    """Which of `_JITTERS` comes first, second, third and fourth; the last of them changes nothing."""
    second: float = 1.0
    third: float = 2.0
    fourth: float = 3.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    erased_top: float = 0.0
    """Rectangle that is erased, in pixels of the crop; none where its height is 0."""
    erased_left: float = 0.0
    erased_height: float = 0.0
    erased_width: float = 0.0


_COLUMN = {name: column for column, name in enumerate(Draw._fields)}
_JITTERS = ("brightness", "contrast", "saturation")


class BatchAugmentation:
    """Draws and applies the random changes of an `Augmentation`.

    Args:
        augmentation: which changes, and how strong.
        size: (height, width) in pixels of the images that come in.
        crop: (height, width) of those that go out.
        fill: colour of uncovered corners, red, green and blue from 0 to 255.
    """

    def __init__(
        self, augmentation: Augmentation, size: tuple[int, int], crop: tuple[int, int], fill: tuple[int, ...]
    ) -> None:
        self.size, self.crop, self.fill = size, crop, fill
        zoom = (1 - augmentation.scale, 1 + augmentation.scale) if augmentation.scale else None
        moves = bool(augmentation.rotation or augmentation.scale)
        self._affine = v2.RandomAffine(augmentation.rotation, scale=zoom) if moves else None
        self._crop = v2.RandomCrop(crop)
        self._flip = augmentation.flip
        strength = augmentation.color_jitter
        self._jitter = v2.ColorJitter(strength, strength, strength) if strength else None
        # Erased after normalisation, so that 0 is the mean colour.
        self._erase = v2.RandomErasing(augmentation.erasing, scale=(0.02, 0.4)) if augmentation.erasing else None

    def draw(self, seed: int) -> Draw:
        """Return what happens to the image whose seed this is."""
        drawn: dict[str, float] = {}
        image, cropped = torch.empty(3, *self.size), torch.empty(3, *self.crop)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
            if self._affine is not None:
                affine = self._affine.make_params([image])
                angle = math.radians(affine["angle"])
                drawn.update(cos=math.cos(angle) / affine["scale"], sin=math.sin(angle) / affine["scale"])
            place = self._crop.make_params([image])
            drawn.update(top=place["top"], left=place["left"])
            if self._flip:
                drawn["flip"] = float(torch.rand(1) < self._flip)
            if self._jitter is not None:
                jitter = self._jitter.make_params([cropped])
                order = dict(zip(("first", "second", "third", "fourth"), jitter["fn_idx"].tolist(), strict=True))
                drawn.update(order, **{name: jitter[f"{name}_factor"] for name in _JITTERS})
            if self._erase is not None and torch.rand(1) < self._erase.p:
                box = self._erase.make_params([cropped])
                if box["v"] is not None:
                    drawn.update({f"erased_{side}": box[side[0]] for side in ("height", "width")})
                    drawn.update(erased_top=box["i"], erased_left=box["j"])
        return Draw(**drawn)

    def move_and_recolour(self, pixels: Tensor, draws: Draws) -> Tensor:
        """Rotate, zoom, crop, mirror and recolour.

        Args:
            pixels: (B, 3, *size) uint8.
            draws: of each image.

        Returns:
            (B, 3, *crop) float32, whole numbers from 0 to 255.
        """
        images = self._move(pixels, draws) if self._affine is not None else self._cut(pixels, draws)
        if self._jitter is not None:
            for position in ("first", "second", "third", "fourth"):
                chosen = draws[:, _COLUMN[position]]
                for number, name in enumerate(_JITTERS):
                    rows = np.flatnonzero(chosen == number)
                    if len(rows):
                        index = torch.from_numpy(rows).to(images.device)
                        images[index] = _RECOLOUR[name](images[index], draws[rows, _COLUMN[name]])
        return images

    def erase(self, images: Tensor, draws: Draws) -> None:
        """Set the rectangles of normalised images (B, 3, *crop) to 0, in place."""
        first = _COLUMN["erased_top"]
        for image, (top, left, height, width) in zip(images, draws[:, first : first + 4].astype(int), strict=True):
            image[:, top : top + height, left : left + width] = 0

    def _cut(self, pixels: Tensor, draws: Draws) -> Tensor:
        height, width = self.crop
        images = torch.empty(len(pixels), 3, height, width, device=pixels.device)
        for image, source, draw in zip(images, pixels, draws, strict=True):
            top, left = int(draw[_COLUMN["top"]]), int(draw[_COLUMN["left"]])
            part = source[:, top : top + height, left : left + width]
            image.copy_(part.flip(-1) if draw[_COLUMN["flip"]] else part)
        return images

    def _move(self, pixels: Tensor, draws: Draws) -> Tensor:
        """Sample each pixel of the crop from where it was before rotation and zoom; see torchvision's affine."""
        # The image, and a mask that tells the corners from which nothing is sampled.
        source = torch.ones(len(pixels), 4, *self.size, device=pixels.device)
        source[:, :3] = pixels
        sampled = F.grid_sample(source, self._grid(draws).to(pixels.device), padding_mode="zeros", align_corners=False)
        images, covered = sampled[:, :3], sampled[:, 3:]
        fill = torch.tensor(self.fill, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
        return images.sub_(fill).mul_(covered).add_(fill).round_().contiguous()

    def _grid(self, draws: Draws) -> Tensor:
        """(B, *crop, 2) where to sample: x and y from -1 to 1."""
        (height, width), (rows, columns) = self.size, self.crop
        top, left, flip = (torch.from_numpy(draws[:, _COLUMN[name]]).long() for name in ("top", "left", "flip"))
        across = torch.arange(columns)
        across = left[:, None] + torch.where(flip[:, None] == 1, across.flip(0), across)
        down = top[:, None] + torch.arange(rows)
        x = torch.linspace((1.0 - width) / 2, (width - 1.0) / 2, width)[across][:, None, :]
        y = torch.linspace((1.0 - height) / 2, (height - 1.0) / 2, height)[down][:, :, None]
        cos, sin = (torch.from_numpy(draws[:, _COLUMN[name]]).float()[:, None, None] for name in ("cos", "sin"))
        grid = torch.empty(len(draws), rows, columns, 2)
        grid[..., 0] = x * (cos / (width / 2)) + y * (sin / (width / 2))
        grid[..., 1] = x * (-sin / (height / 2)) + y * (cos / (height / 2))
        return grid


def _change_brightness(images: Tensor, factors: NDArray[np.float64]) -> Tensor:
    return images.mul_(_per_image(factors, images)).clamp_(0, 255).floor_()


def _change_contrast(images: Tensor, factors: NDArray[np.float64]) -> Tensor:
    return _blend(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), factors)


def _change_saturation(images: Tensor, factors: NDArray[np.float64]) -> Tensor:
    return _blend(images, _grey(images), factors)


_RECOLOUR: dict[str, Any] = {
    "brightness": _change_brightness,
    "contrast": _change_contrast,
    "saturation": _change_saturation,
}


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W) luma of ITU-R BT.601, whole numbers, as torchvision computes it."""
    red, green, blue = images.unbind(dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_().unsqueeze(1)


def _blend(images: Tensor, others: Tensor, factors: NDArray[np.float64]) -> Tensor:
    """`factor` parts of each image and 1 - `factor` of the other, in place."""
    # Like torchvision's sum with a factor, addcmul rounds once. Where the result is a whole number but for rounding, as
    # in grey pixels, that decides which one is the next below.
    images.mul_(_per_image(factors, images)).addcmul_(others, _per_image(1.0 - factors, images))
    return images.clamp_(0, 255).floor_()


def _per_image(values: NDArray[np.float64], images: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(images.device)[:, None, None, None]
