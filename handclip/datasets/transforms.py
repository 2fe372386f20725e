"""From a photograph to a network's input: one description of the preprocessing, used by every phase."""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from handclip.config.experiment import Augmentation, ResizeMode
from handclip.datasets.colours import to_rgb
from handclip.datasets.pixels import Squash, in_one_thread, squash_pixels

Choices = NDArray[np.float64]
"""(21,) what was drawn for one image: its place, the rectangle that is erased, and three numbers for each of four
changes of colour."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """What a model expects of its input; travels with the model's weights.

    Photographs are squashed to `height` x `width` pixels whatever their aspect ratio, unless `resize_mode` says
    otherwise: a centre crop would cut off fingers and wrist. `mean` and `std` are per RGB channel, of values in [0, 1].
    """

    height: int
    width: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: str = "bicubic"
    resize_mode: ResizeMode = "squash"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint or a log."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Undo `to_dict`."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


_AT_ONCE = 8
"""Images that a CPU transforms at once."""


class ImageTransform:
    """Photographs to normalised tensors.

    Without an augmentation it is the deterministic evaluation transform. With one, the random choices are drawn from
    the seed given with each image, so that they depend neither on the order of the images nor on worker processes.
    """

    def __init__(
        self, preprocessing: Preprocessing, augmentation: Augmentation | None = None, *, reduced_decoding: bool = False
    ) -> None:
        """Prepare the steps.

        Args:
            preprocessing: of the model.
            augmentation: random changes.
            reduced_decoding: photographs much larger than the input need not be decoded in full.
        """
        self.preprocessing = preprocessing
        size = (preprocessing.height, preprocessing.width)
        ratio = augmentation.resize_crop if augmentation else 1.0
        height, width = (round(side * ratio) for side in size)
        self.squash = Squash(height, width, preprocessing.interpolation, reduced_decoding, preprocessing.resize_mode)
        """How photographs become pixels, which `PixelReader` does."""
        self._mean_and_std = torch.tensor([preprocessing.mean, preprocessing.std])[:, :, None, None]
        self._augmentation: BatchAugmentation | None = None
        if augmentation is not None and augmentation != Augmentation():
            red, green, blue = (round(255 * value) for value in preprocessing.mean)
            self._augmentation = BatchAugmentation(augmentation, (height, width), size, (red, green, blue))

    @property
    def is_random(self) -> bool:
        """Whether each image needs a seed."""
        return self._augmentation is not None

    def choose(self, seed: int | None) -> Choices | None:
        """Return the random choices for the image whose seed this is; None if there are none to make.

        Raises:
            ValueError: there are choices to draw, but there is no seed.
        """
        if self._augmentation is None:
            return None
        if seed is None:
            raise ValueError("an augmenting transform needs a seed for each image")
        return self._augmentation.choose(seed)

    def batch(self, pixels: Tensor, choices: Tensor | None = None) -> Tensor:
        """Transform a batch on the device where it is.

        Args:
            pixels: (B, 3, squash.height, squash.width) uint8.
            choices: (B, ...) what `draw` returned for each image; on the same device.

        Returns:
            (B, 3, height, width) float32, normalised.
        """
        if self._augmentation is not None and choices is None:
            raise ValueError("an augmenting transform needs what was drawn for each image")
        images = torch.empty(len(pixels), 3, self.preprocessing.height, self.preprocessing.width, device=pixels.device)
        on_cpu = pixels.device.type == "cpu"
        # A few at a time, so that what a CPU has just computed is still in its cache.
        step = _AT_ONCE if on_cpu else max(1, len(pixels))
        with in_one_thread() if on_cpu and self._augmentation is None else nullcontext():
            for start in range(0, len(pixels), step):
                rows = slice(start, start + step)
                self._transform(pixels[rows], choices[rows] if choices is not None else None, images[rows])
        return images

    def _transform(self, pixels: Tensor, choices: Tensor | None, out: Tensor) -> None:
        if self._augmentation is not None and choices is not None:
            pixels = self._augmentation.move_and_recolour(pixels, choices)
        mean, std = self._statistics(out.device)
        torch.mul(pixels, 1 / 255, out=out).sub_(mean).div_(std)
        if self._augmentation is not None and choices is not None:
            self._augmentation.erase(out, choices)

    def _statistics(self, device: torch.device) -> Tensor:
        """(2, 3, 1, 1) mean and standard deviation. Made once, because making a tensor there waits for a GPU."""
        if self._mean_and_std.device != device:
            self._mean_and_std = self._mean_and_std.to(device)
        return self._mean_and_std

    def __call__(self, image: Image.Image, seed: int | None = None) -> Tensor:
        """Transform one photograph to (3, height, width).

        Args:
            image: upright, of any colour mode that a file may have.
            seed: decides the random choices.

        Raises:
            ValueError: its mode has no defined white.
        """
        choices = self.choose(seed)
        pixels = squash_pixels(np.array(to_rgb(image)), self.squash)[None]
        return self.batch(pixels, torch.from_numpy(choices)[None] if choices is not None else None)[0]


_PLACE = slice(0, 5)
"""Cosine and sine of the rotation, both divided by the zoom; top and left of the crop; 1 if it is mirrored."""
_ERASED = slice(5, 9)
"""Top, left, height and width, in pixels of the crop; without height where nothing is erased."""
_COLOURS = slice(9, 21)
"""For each change: the factors of the image itself, of its mean grey, and of its grey. They are added up."""
_CHANGES = 4
_UNCHANGED = np.array([1.0, 0, 0, 0, 0, *[0.0] * 4, *[1.0, 0, 0] * _CHANGES])


class BatchAugmentation:
    """Chooses and applies the random changes of an `Augmentation`.

    What changes is drawn from each image's own seed by torchvision's transforms, so that it depends neither on the
    order of the images, nor on worker processes, nor on the device. It is applied to the batch at once, by some fifty
    operations whatever its size, none of which waits for a GPU. On a CPU the result is that of torchvision's
    RandomAffine, RandomCrop, RandomHorizontalFlip and ColorJitter one after the other, bit by bit; a GPU may round a
    level otherwise.

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

    def choose(self, seed: int) -> Choices:
        """Return what happens to the image whose seed this is."""
        chosen = _UNCHANGED.copy()
        image, cropped = torch.empty(3, *self.size), torch.empty(3, *self.crop)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
            if self._affine is not None:
                affine = self._affine.make_params([image])
                angle = math.radians(affine["angle"])
                chosen[:2] = math.cos(angle) / affine["scale"], math.sin(angle) / affine["scale"]
            place = self._crop.make_params([image])
            chosen[2:4] = place["top"], place["left"]
            if self._flip:
                chosen[4] = torch.rand(1) < self._flip
            if self._jitter is not None:
                jitter = self._jitter.make_params([cropped])
                chosen[_COLOURS] = [factor for change in _changes_of_colour(jitter) for factor in change]
            if self._erase is not None and torch.rand(1) < self._erase.p:
                box = self._erase.make_params([cropped])
                if box["v"] is not None:
                    chosen[_ERASED] = box["i"], box["j"], box["h"], box["w"]
        return chosen

    def move_and_recolour(self, pixels: Tensor, choices: Tensor) -> Tensor:
        """Rotate, zoom, crop, mirror and recolour.

        Args:
            pixels: (B, 3, *size) uint8.
            choices: (B, 21) float64, what was drawn for each image; on the same device.

        Returns:
            (B, 3, *crop) float32, whole numbers from 0 to 255.
        """
        images = self._move(pixels, choices[:, _PLACE])
        if self._jitter is not None:
            # Like torchvision's sum with a factor, addcmul rounds once. Where the result is a whole number but for
            # rounding, as in grey pixels, that decides which one is the next below.
            factors = choices[:, _COLOURS].float().view(-1, _CHANGES, 3, 1, 1, 1)
            for own, of_mean, of_grey in (factors[:, change].unbind(1) for change in range(_CHANGES)):
                grey = _grey(images)
                mean = grey.mean(dim=(1, 2, 3), keepdim=True)
                images.mul_(own).addcmul_(mean, of_mean).addcmul_(grey, of_grey).clamp_(0, 255).floor_()
        return images

    def erase(self, images: Tensor, choices: Tensor) -> None:
        """Set the rectangles of normalised images (B, 3, *crop) to 0, in place."""
        if self._erase is None:
            return
        top, left, height, width = choices[:, _ERASED].unsqueeze(-1).unbind(1)
        down, across = (torch.arange(side, device=images.device) for side in self.crop)
        rows, columns = (down >= top) & (down < top + height), (across >= left) & (across < left + width)
        images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0)

    def _move(self, pixels: Tensor, places: Tensor) -> Tensor:
        """Sample each pixel of the crop from where it was before; see torchvision's affine."""
        down, across = self._crops(places)
        if self._affine is None:
            image = torch.arange(len(pixels), device=pixels.device)[:, None, None]
            return pixels[image, :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2).float().contiguous()
        (height, width), device = self.size, pixels.device
        x = torch.linspace((1.0 - width) / 2, (width - 1.0) / 2, width, device=device)[across][:, None, :]
        y = torch.linspace((1.0 - height) / 2, (height - 1.0) / 2, height, device=device)[down][:, :, None]
        cos, sin = (places[:, column, None, None].float() for column in (0, 1))
        grid = torch.empty(len(pixels), *self.crop, 2, device=device)
        grid[..., 0] = x * (cos / (width / 2)) + y * (sin / (width / 2))
        grid[..., 1] = x * (-sin / (height / 2)) + y * (cos / (height / 2))
        # The image, and a mask that tells the corners from which nothing is sampled.
        source = torch.ones(len(pixels), 4, *self.size, device=device)
        source[:, :3] = pixels
        sampled = F.grid_sample(source, grid, padding_mode="zeros", align_corners=False)
        images, covered = sampled[:, :3], sampled[:, 3:]
        for channel, fill in enumerate(self.fill):
            images[:, channel : channel + 1].sub_(fill).mul_(covered).add_(fill)
        return images.round_().contiguous()

    def _crops(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """(B, height) rows and (B, width) columns of each crop, the columns from right to left if it is mirrored."""
        top, left, flip = (places[:, column, None].long() for column in (2, 3, 4))
        down, across = (torch.arange(side, device=places.device) for side in self.crop)
        return top + down, left + torch.where(flip == 1, across.flip(0), across)


def _changes_of_colour(jitter: dict[str, Any]) -> Iterable[tuple[float, float, float]]:
    """Turn torchvision's ColorJitter into what is added up: in its order, each change blends in something else."""
    for change in jitter["fn_idx"].tolist():
        if change == 0:
            yield jitter["brightness_factor"], 0.0, 0.0
        elif change == 1:
            yield jitter["contrast_factor"], 1.0 - jitter["contrast_factor"], 0.0
        elif change == 2:
            yield jitter["saturation_factor"], 0.0, 1.0 - jitter["saturation_factor"]
        else:  # the hue, which stays
            yield 1.0, 0.0, 0.0


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W) luma of ITU-R BT.601, whole numbers, as torchvision computes it."""
    red, green, blue = images.unbind(dim=1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_().unsqueeze(1)
