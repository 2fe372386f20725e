"""The batched augmentation against torchvision's transforms, image by image."""

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from handclip.config.experiment import Augmentation
from handclip.datasets.transforms import BatchAugmentation

FILL = (123, 117, 104)
STRONG: dict[str, Any] = {"resize_crop": 1.3, "flip": 0.5, "rotation": 40, "scale": 0.3, "color_jitter": 0.6}


def as_torchvision(pixels: Tensor, seed: int, augmentation: Augmentation, crop: tuple[int, int]) -> Tensor:
    """One image after the other through torchvision's own transforms; what is erased becomes -1."""
    zoom = (1 - augmentation.scale, 1 + augmentation.scale) if augmentation.scale else None
    steps: list[v2.Transform] = []
    if augmentation.rotation or zoom:
        bilinear = InterpolationMode.BILINEAR
        steps.append(v2.RandomAffine(augmentation.rotation, scale=zoom, interpolation=bilinear, fill=list(FILL)))
    steps.append(v2.RandomCrop(crop))
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip(augmentation.flip))
    if strength := augmentation.color_jitter:
        steps.append(v2.ColorJitter(strength, strength, strength))
    if augmentation.erasing:
        steps.append(v2.Lambda(lambda image: image.float() + 1))
        steps.append(v2.RandomErasing(augmentation.erasing, scale=(0.02, 0.4)))
        steps.append(v2.Lambda(lambda image: image - 1))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        result: Tensor = v2.Compose(steps)(pixels)
    return result.float()


def batched(pixels: Tensor, seeds: list[int], augmentation: Augmentation, crop: tuple[int, int]) -> Tensor:
    augment = BatchAugmentation(augmentation, (pixels.shape[-2], pixels.shape[-1]), crop, FILL)
    draws = torch.from_numpy(np.stack([augment.choose(seed) for seed in seeds]))
    images = augment.move_and_recolour(pixels, draws) + 1
    augment.erase(images, draws)
    return images - 1


def random_pixels(shape: tuple[int, int], count: int, seed: int, grey: bool) -> Tensor:
    pixels = np.random.default_rng(seed).integers(256, size=(count, 3, *shape), dtype=np.uint8)
    return torch.from_numpy(pixels[:, :1].repeat(3, axis=1) if grey else pixels)


augmentations = st.builds(
    Augmentation,
    resize_crop=st.sampled_from([1.0, 1.15, 1.5]),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    rotation=st.sampled_from([0.0, 15.0, 180.0]),
    scale=st.sampled_from([0.0, 0.1, 0.5]),
    color_jitter=st.sampled_from([0.0, 0.2, 1.0]),
    erasing=st.sampled_from([0.0, 0.5]),
)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    augmentations,
    st.tuples(st.integers(12, 70), st.integers(12, 70)),
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5),
    st.booleans(),
)
def test_a_batch_is_augmented_as_torchvision_does_image_by_image(
    augmentation: Augmentation, crop: tuple[int, int], seeds: list[int], grey: bool
) -> None:
    """To the last bit, so that numbers do not depend on how it is computed; grey pixels sit on the edge of rounding."""
    shape = tuple(round(side * augmentation.resize_crop) for side in crop)
    pixels = random_pixels((shape[0], shape[1]), len(seeds), seeds[0] % 1000, grey)
    expected = [as_torchvision(image, seed, augmentation, crop) for image, seed in zip(pixels, seeds, strict=True)]
    assert torch.equal(batched(pixels, seeds, augmentation, crop), torch.stack(expected))


def test_it_does_not_matter_which_images_share_a_batch() -> None:
    augmentation, crop = Augmentation(**STRONG, erasing=0.5), (40, 30)
    pixels, seeds = random_pixels((52, 39), 12, 0, grey=False), list(range(12))
    whole = batched(pixels, seeds, augmentation, crop)
    one_by_one = [batched(pixels[[i]], [seeds[i]], augmentation, crop) for i in range(12)]
    assert torch.equal(whole, torch.cat(one_by_one))


def test_nothing_asked_for_changes_nothing() -> None:
    pixels = random_pixels((20, 30), 2, 0, grey=False)
    assert torch.equal(batched(pixels, [5, 6], Augmentation(), (20, 30)), pixels.float())
