"""From a photograph to a network's input: one description of the preprocessing, used by every phase."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from handclip.config.experiment import Augmentation

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """What a model expects of its input; travels with the model's weights.

    Photographs are squashed to `height` x `width` pixels whatever their aspect ratio: a centre crop would cut off
    fingers and wrist. `mean` and `std` are per RGB channel, of values in [0, 1].
    """

    height: int
    width: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    interpolation: str = "bicubic"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint or a log."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Undo `to_dict`."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


class ImageTransform:
    """Photograph (RGB, 8 bit) to float32 tensor of shape (3, height, width), normalised.

    Without an augmentation it is the deterministic evaluation transform. With one, the random choices are drawn from
    the seed given with each image, so that they depend neither on the order of the images nor on worker processes.
    """

    def __init__(self, preprocessing: Preprocessing, augmentation: Augmentation | None = None) -> None:
        self.preprocessing = preprocessing
        size = (preprocessing.height, preprocessing.width)
        ratio = augmentation.resize_crop if augmentation else 1.0
        resized = tuple(round(side * ratio) for side in size)
        interpolation = InterpolationMode(preprocessing.interpolation)
        self._resize = v2.Compose([v2.PILToTensor(), v2.Resize(resized, interpolation, antialias=True)])
        self._augment = v2.Compose(_augmentations(augmentation, preprocessing)) if augmentation else None
        self._normalise = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(preprocessing.mean, preprocessing.std)]
        )
        # Erased after normalisation, so that 0 is the mean colour.
        self._erase = v2.RandomErasing(augmentation.erasing, scale=(0.02, 0.4)) if augmentation else None

    def __call__(self, image: Image.Image, seed: int | None = None) -> Tensor:
        """Transform one photograph; `seed` decides the random choices and is required where there are any."""
        pixels = self._resize(image)
        if self._augment is None or self._erase is None:
            return self._normalise(pixels)  # type: ignore[no-any-return]
        if seed is None:
            raise ValueError("an augmenting transform needs a seed for each image")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
            return self._erase(self._normalise(self._augment(pixels)))  # type: ignore[no-any-return]


def _augmentations(augmentation: Augmentation, preprocessing: Preprocessing) -> list[v2.Transform]:
    steps: list[v2.Transform] = []
    if augmentation.rotation or augmentation.scale:
        zoom = (1 - augmentation.scale, 1 + augmentation.scale) if augmentation.scale else None
        fill = [round(255 * value) for value in preprocessing.mean]
        steps.append(
            v2.RandomAffine(augmentation.rotation, scale=zoom, interpolation=InterpolationMode.BILINEAR, fill=fill)
        )
    steps.append(v2.RandomCrop((preprocessing.height, preprocessing.width)))
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip(augmentation.flip))
    if strength := augmentation.color_jitter:
        steps.append(v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength))
    return steps
