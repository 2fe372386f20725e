"""From a photograph to a network's input: one description of the preprocessing, used by every phase."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from handclip.config.experiment import Augmentation, ResizeMode
from handclip.datasets.augmentation import BatchAugmentation, Draw
from handclip.datasets.images import to_rgb
from handclip.datasets.pixels import Squash, in_one_thread, squash_image

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
        """Undo `to_dict`; values of older versions lack `resize_mode`, and were squashed."""
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

    def draw(self, seed: int | None) -> Draw | None:
        """Return the random choices for the image whose seed this is; None if there are none to make.

        Raises:
            ValueError: there are choices to draw, but there is no seed.
        """
        if self._augmentation is None:
            return None
        if seed is None:
            raise ValueError("an augmenting transform needs a seed for each image")
        return self._augmentation.draw(seed)

    def batch(self, pixels: Tensor, draws: Tensor | None = None) -> Tensor:
        """Transform a batch on the device where it is.

        Args:
            pixels: (B, 3, squash.height, squash.width) uint8.
            draws: (B, ...) what `draw` returned for each image; on the same device.

        Returns:
            (B, 3, height, width) float32, normalised.
        """
        if self._augmentation is not None and draws is None:
            raise ValueError("an augmenting transform needs what was drawn for each image")
        images = torch.empty(len(pixels), 3, self.preprocessing.height, self.preprocessing.width, device=pixels.device)
        on_cpu = pixels.device.type == "cpu"
        # A few at a time, so that what a CPU has just computed is still in its cache.
        step = _AT_ONCE if on_cpu else max(1, len(pixels))
        with in_one_thread() if on_cpu and self._augmentation is None else nullcontext():
            for start in range(0, len(pixels), step):
                rows = slice(start, start + step)
                self._transform(pixels[rows], draws[rows] if draws is not None else None, images[rows])
        return images

    def _transform(self, pixels: Tensor, draws: Tensor | None, out: Tensor) -> None:
        if self._augmentation is not None and draws is not None:
            pixels = self._augmentation.move_and_recolour(pixels, draws)
        mean, std = self._statistics(out.device)
        torch.mul(pixels, 1 / 255, out=out).sub_(mean).div_(std)
        if self._augmentation is not None and draws is not None:
            self._augmentation.erase(out, draws)

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
        draw = self.draw(seed)
        pixels = squash_image(to_rgb(image), self.squash)[None]
        return self.batch(pixels, torch.from_numpy(draw)[None] if draw is not None else None)[0]
