"""Photographs as batches: the way a GPU gets them, and the way a CPU does."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from handclip.config.experiment import Augmentation
from handclip.datasets.pixel_cache import PixelCache
from handclip.datasets.torch_dataset import (
    Batch,
    BatchCollator,
    ImageDataset,
    LabelledImage,
    to_images,
)
from handclip.datasets.transforms import ImageTransform, Preprocessing

CPU, GPU = torch.device("cpu"), torch.device("cuda")
STRONG = Augmentation(resize_crop=1.2, flip=0.5, rotation=30, scale=0.2, color_jitter=0.3, erasing=0.5)
ITEMS = [(index, 1000 + index) for index in range(6)]


@pytest.fixture
def images(tmp_path: Path) -> list[LabelledImage]:
    made = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        pixels = np.random.default_rng(number).integers(256, size=(50, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        made.append(LabelledImage(path, hashlib.sha256(path.read_bytes()).hexdigest(), number % 3))
    return made


def collated(dataset: ImageDataset, device: torch.device) -> Batch:
    return BatchCollator(dataset.transform, device)([dataset[item] for item in ITEMS])


@pytest.mark.parametrize("augmentation", [None, STRONG], ids=["plain", "augmented"])
def test_a_gpu_gets_pixels_and_makes_the_same_of_them(
    images: list[LabelledImage], augmentation: Augmentation | None
) -> None:
    transform = ImageTransform(Preprocessing(32, 24), augmentation)
    dataset = ImageDataset(images, transform)
    for_gpu, for_cpu = collated(dataset, GPU), collated(dataset, CPU)
    assert for_gpu.images.dtype == torch.uint8
    assert (for_gpu.choices is None) == (augmentation is None)
    assert for_gpu.labels.tolist() == for_cpu.labels.tolist() == [0, 1, 2, 0, 1, 2]
    # The device that transforms is a CPU here too: only the way to it is that of a GPU.
    expected = torch.stack([transform(Image.open(images[index].path), seed) for index, seed in ITEMS])
    for batch in (for_gpu, for_cpu):
        assert torch.equal(to_images(batch, transform, CPU), expected)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_give_the_same_with_and_without_the_cache(
    images: list[LabelledImage], tmp_path: Path, method: str
) -> None:
    transform = ImageTransform(Preprocessing(32, 24), STRONG)
    expected = collated(ImageDataset(images, transform), CPU).images
    dataset = ImageDataset(images, transform, PixelCache(tmp_path / "cache", 2**30))
    loader = DataLoader(
        dataset,
        batch_sampler=[ITEMS],
        num_workers=1,
        collate_fn=BatchCollator(transform, CPU),
        multiprocessing_context=method,
        persistent_workers=True,
    )
    for _epoch in ("decoded", "from the cache"):
        assert [torch.equal(batch.images, expected) for batch in loader] == [True]
    assert len(list((tmp_path / "cache").rglob("*.pix"))) == len(images)


def test_an_empty_batch_is_no_fault() -> None:
    transform = ImageTransform(Preprocessing(32, 24))
    assert transform.batch(torch.empty(0, 3, 32, 24, dtype=torch.uint8)).shape == (0, 3, 32, 24)
    assert transform.batch(torch.empty(0, 3, 32, 24, dtype=torch.uint8, device="meta")).shape == (0, 3, 32, 24)
