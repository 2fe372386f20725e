"""How fast photographs reach the training step: decoding at reduced size, the pixel cache, and a whole epoch.

The photographs of the first rows are synthetic hands of 1600 x 1200 pixels, the size of 11k Hands' own. A row named
"at best" measures only what cannot be left out of the row above it, so that what is missing from a target can be told
from what could still be won.
"""

import csv
import functools
import hashlib
import io
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from harness import Row, main, require, seconds_of, speedup_row
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import parse_config
from handclip.cores import available_cores
from handclip.datasets import images
from handclip.datasets.images import read_pixels
from handclip.datasets.pixel_cache import PixelCache, open_pixel_cache
from handclip.datasets.pixels import MARGIN, PixelReader, in_one_thread
from handclip.datasets.sampling import RandomBatchSampler
from handclip.datasets.torch_dataset import BatchCollator, ImageDataset, LabelledImage, to_images
from handclip.datasets.transforms import ImageTransform, Preprocessing
from handclip.loss.loss_factory import build_criterion
from handclip.models.builder import build_model
from handclip.parallel.hardware import Computation, choose_precision
from handclip.runs.data import find_manifests, load_training_data
from handclip.runs.train import train
from handclip.synthetic import SyntheticHands, generate
from handclip.training.step import Objective, Step

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "hands11k_sample"
LARGE, BATCH, SIDE = (1600, 1200), 32, 224
DISTINCT, COPIES = 48, 8
CPU = torch.device("cpu")
TOLERANCE = 1.0
"""Mean difference, in levels of 255, that decoding at reduced size may make."""
EPOCHS = 4
AUGMENTATION = {"resize_crop": 1.15, "flip": 0.5, "rotation": 15, "scale": 0.1, "color_jitter": 0.2}
"""That of the demo and of the study on the real sample."""


class PlainDataset(Dataset[tuple[torch.Tensor, int]]):
    """What one plainly writes: Pillow decodes, torchvision transforms, image by image."""

    def __init__(self, images: list[LabelledImage], preprocessing: Preprocessing) -> None:
        self.images = images
        self.transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.Resize((preprocessing.height, preprocessing.width), v2.InterpolationMode.BICUBIC, antialias=True),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(preprocessing.mean, preprocessing.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.images[index].path) as image:
            return self.transform(image.convert("RGB")), self.images[index].label


class FilesReadThrough(Dataset[tuple[torch.Tensor, int, None]]):
    """Has every bit of a JPEG file read, by the smallest size that libjpeg-turbo gives, and hands on ready pixels."""

    def __init__(self, images: list[LabelledImage]) -> None:
        self.images = images
        self.pixels = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, None]:
        simplejpeg.decode_jpeg(self.images[index].path.read_bytes(), "GRAY", min_height=1, min_width=1)
        return self.pixels, 0, None


class ReadyPixels(FilesReadThrough):
    """Hands on ready pixels, and reads nothing."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, None]:
        return self.pixels, 0, None


@dataclass(frozen=True)
class Camera:
    """How noisy photographs are, and how strongly compressed."""

    noise: float
    """Standard deviation, in levels of 255."""
    quality: int


CAMERAS = (Camera(1, 75), Camera(2, 85), Camera(6, 92))
"""These give some 60, 100 and 400 kB a photograph. All of a file has to be read whatever the size that is decoded."""


def large_photographs(folder: Path, camera: Camera, count: int) -> list[LabelledImage]:
    """Draw hands once and save them large: what takes the time is decoding, not what is seen."""
    generate(folder / "hands", SyntheticHands(identities=6, images_per_aspect=2, size=400))
    images = []
    for number, path in enumerate(sorted((folder / "hands" / "Hands").glob("*.jpg"))[:count]):
        noise = np.random.default_rng(number).normal(0, camera.noise, (LARGE[1], LARGE[0], 3))
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC), dtype=np.float64)
        file = io.BytesIO()
        Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=camera.quality)
        for copy in range(COPIES):  # which differ behind the end of the image: other files, as long to decode
            content = file.getvalue() + bytes([copy])
            large = folder / f"{number}_{copy}.jpg"
            large.write_bytes(content)
            images.append(LabelledImage(large, hashlib.sha256(content).hexdigest(), number % 8))
    return images


def decoding_rows(folder: Path) -> Iterator[Row]:
    """One photograph of each size, on one core: libjpeg-turbo directly against the same library through Pillow.

    `folder` holds large photographs of the second camera.
    """
    reader = PixelReader(ImageTransform(Preprocessing(SIDE, SIDE), reduced_decoding=True).squash)
    enough = math.ceil(MARGIN * SIDE)
    for width, height in (LARGE, (1024, 768), (640, 480)):
        path = folder / f"{width}.jpg"
        with Image.open(folder / "0_0.jpg") as image:
            image.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=CAMERAS[1].quality)
        content = path.read_bytes()
        read = functools.partial(reader.read, path, hashlib.sha256(content).hexdigest())
        at = read_pixels(path, enough=(enough, enough)).shape
        decode = functools.partial(simplejpeg.decode_jpeg, content, min_height=at[0], min_width=at[1])
        with without_simplejpeg():
            by_pillow = read()
        require(torch.equal(read(), by_pillow), "both give the same pixels")
        times = []
        for _ in range(9):  # by turns, so that what else the machine does falls on all of them
            with without_simplejpeg():
                by_pillow_seconds = seconds_of(read, repeats=7)
            times.append((by_pillow_seconds, seconds_of(read, repeats=7), seconds_of(decode, repeats=7)))
        pillow, ours, least = np.min(times, axis=0)
        what = f"a training photograph of {width}x{height}, {len(content) / 1000:.0f} kB, to {SIDE} px, one core"
        reference = "Pillow decodes, at the same reduced size"
        yield speedup_row(
            what,
            reference,
            reference_seconds=pillow,
            seconds=ours,
            target=1.3,
            same_work="pixels equal, bit by bit",
            note=f"{ours / pillow:.2f} of the time; decoded at {at[1]}x{at[0]}",
        )
        yield speedup_row(
            f"{what}: at best",
            reference,
            reference_seconds=pillow,
            seconds=least,
            note="libjpeg-turbo's decoding alone: the file is neither read, checked nor squashed",
        )


@contextmanager
def without_simplejpeg() -> Iterator[None]:
    """Let Pillow decode, as where simplejpeg is not installed."""
    images.simplejpeg = None
    try:
        yield
    finally:
        images.simplejpeg = simplejpeg


def ready_batch(dataset: ImageDataset) -> torch.Tensor:
    """All images of a data set, ready to train on."""
    batch = BatchCollator(dataset.transform, CPU)([dataset[index] for index in range(len(dataset))])
    return to_images(batch, dataset.transform, CPU)


def epoch_seconds(loader: "DataLoader[Any]", epochs: int, finish: Callable[[Any], object]) -> list[float]:
    """Seconds of each epoch, workers kept; the first includes their start. `finish` makes a batch ready to train on."""
    times = []
    for _ in range(epochs):
        start = time.perf_counter()
        for batch in loader:
            finish(batch)
        times.append(time.perf_counter() - start)
    return times


def input_rows(folder: Path, camera: Camera) -> Iterator[Row]:
    images = large_photographs(folder, camera, DISTINCT)
    size = sum(image.path.stat().st_size for image in images) / len(images) / 1000
    preprocessing = Preprocessing(SIDE, SIDE)
    transform = ImageTransform(preprocessing, reduced_decoding=True)
    workers: dict[str, Any] = {"num_workers": available_cores(), "persistent_workers": True}
    plain = DataLoader(PlainDataset(images, preprocessing), BATCH, **workers)
    cache = PixelCache(folder / "pixels", 2**32)
    collate = BatchCollator(transform, CPU)
    fast = DataLoader(ImageDataset(images, transform, cache), BATCH, collate_fn=collate, **workers)

    sixteen = images[::COPIES][:16]
    expected = torch.stack([plain.dataset[index][0] for index in range(0, 16 * COPIES, COPIES)])
    exact = ready_batch(ImageDataset(sixteen, ImageTransform(preprocessing)))
    require(torch.equal(exact, expected), "decoding in full gives the reference's pixels")
    once = ready_batch(ImageDataset(sixteen, transform))
    levels = ((once - expected).abs().mean(dim=(0, 2, 3)) * torch.tensor(preprocessing.std) * 255).mean().item()
    require(levels < TOLERANCE, f"pixels differ by {levels:.2f} levels")

    def ready(batch: Any) -> torch.Tensor:
        return to_images(batch, transform, CPU)

    plain_first, *plain_later = epoch_seconds(plain, 3, lambda batch: batch)
    first, *later = epoch_seconds(fast, 5, ready)
    read_through, *_ = epoch_seconds(
        DataLoader(FilesReadThrough(images), BATCH, collate_fn=collate, **workers), 1, ready
    )
    _, *moved = epoch_seconds(DataLoader(ReadyPixels(images), BATCH, collate_fn=collate, **workers), 5, ready)
    require(len(cache.images()) == len(images), "the cache holds every photograph")
    cached = ready_batch(ImageDataset(sixteen, transform, cache))
    require(torch.equal(cached, once), "cached pixels are those of the first epoch")

    shape = f"{LARGE[0]}x{LARGE[1]} JPEG of {size:.0f} kB to {SIDE} px batches, {available_cores()} cores"
    reference = "Pillow decodes in full, torchvision, image by image, in a DataLoader with as many workers"
    count = len(images)
    yield speedup_row(
        f"training input, {shape}: first epoch",
        reference,
        reference_seconds=plain_first,
        seconds=first,
        target=4,
        same_work=f"pixels differ by {levels:.2f} of 255 levels on average; without reduced decoding by nothing",
        note=f"{count / plain_first:.0f} and {count / first:.0f} images/s; both start their workers, ours writes the "
        "cache",
    )
    yield speedup_row(
        f"training input, {shape}: first epoch, at best",
        reference,
        reference_seconds=plain_first,
        seconds=read_through,
        note="libjpeg-turbo reads every bit of the files, at an eighth of their size and in grey, and batches of ready "
        "pixels are moved from the workers; nothing is squashed or written",
    )
    seconds, plain_seconds = statistics.median(later), statistics.median(plain_later)
    yield speedup_row(
        f"training input, {shape}: later epochs",
        reference,
        reference_seconds=plain_seconds,
        seconds=seconds,
        target=20,
        same_work="cached pixels are those of the first epoch, bit by bit",
        note=f"{count / plain_seconds:.0f} and {count / seconds:.0f} images/s",
    )
    yield speedup_row(
        f"training input, {shape}: later epochs, at best",
        reference,
        reference_seconds=plain_seconds,
        seconds=statistics.median(moved),
        note="batches of ready pixels are moved from the workers and normalised; nothing is read",
    )


def training_config(folder: Path, root: Path, augmentation: dict[str, float]) -> ExperimentConfig:
    values = {
        "experiment": "benchmark", "model": "vit_small", "pretrained": "none", "dataset": "11k", "aspect": "all",
        "data_root": root, "allow_missing": True, "train_split": "train_all",
        "batch_size": 64, "epochs": EPOCHS, "neck": "bnneck", "lr": 0.001, "backbone_lr_scale": 1.0,
        "augmentation": augmentation, "output_dir": folder / "train_logs", "save_dir": folder / "saved_models",
    }  # fmt: skip
    return parse_config(values, source="benchmark")


def steps_from_memory(config: ExperimentConfig) -> tuple[list[float], float]:
    """Seconds of each epoch over batches that are in memory, and the mean loss of the first epoch."""
    torch.manual_seed(config.seed)
    model = build_model(config)
    data = load_training_data(find_manifests(config), config.train_split)
    sampler = RandomBatchSampler([image.label for image in data.train], config.batch_size, config.seed)
    criterion = build_criterion(config.losses, len(data.identities), model.encoder.embedding_dims)
    transform = ImageTransform(model.encoder.preprocessing, config.augmentation)
    dataset, collate = ImageDataset(data.train, transform), BatchCollator(transform, CPU)
    batches = [collate([dataset[item] for item in items]) for items in sampler]
    batches = [batch._replace(images=to_images(batch, transform, CPU)) for batch in batches]
    computation = Computation.of(config, model, CPU, choose_precision(config.precision, CPU))
    step = Step(config, Objective(config, model, criterion), transform, computation, sampler)
    times, losses = [], []
    for epoch in range(EPOCHS):
        start = time.perf_counter()
        for index, batch in enumerate(batches, start=epoch * len(batches)):
            losses.append(step(batch, index).total.item())
        times.append(time.perf_counter() - start)
    return times, float(np.mean(losses[: len(batches)]))


def augmenting_seconds(config: ExperimentConfig) -> float:
    """Seconds that one core takes to read and augment an epoch's batches from the cache, with nothing beside it."""
    data = load_training_data(find_manifests(config), config.train_split)
    transform = ImageTransform(build_model(config).encoder.preprocessing, config.augmentation, reduced_decoding=True)
    dataset = ImageDataset(data.train, transform, open_pixel_cache(config.pixel_cache_gib))
    collate = BatchCollator(transform, CPU)
    sampler = RandomBatchSampler([image.label for image in data.train], config.batch_size, config.seed)
    with in_one_thread():
        return seconds_of(lambda: [collate([dataset[item] for item in items]) for items in sampler], repeats=3)


def epoch_rows(folder: Path) -> Iterator[Row]:
    root = SAMPLE if SAMPLE.is_dir() else folder / "hands"
    if not SAMPLE.is_dir():
        generate(root, SyntheticHands(identities=60, images_per_aspect=5, size=160))
    data = "the real sample" if SAMPLE.is_dir() else "synthetic hands (the real sample is not there)"
    for name, augmentation in (("without augmentation", {}), ("with the demo's augmentation", AUGMENTATION)):
        config = training_config(folder / f"{len(augmentation)}", root, augmentation)
        before, loss = steps_from_memory(config)
        result = train(config)
        after, _ = steps_from_memory(config)
        with (result.folder / "metrics.csv").open(encoding="utf-8") as file:
            epochs = list(csv.DictReader(file))
        real_loss = float(epochs[0]["loss_total"])
        require(abs(real_loss - loss) < 1e-3 * loss, f"first epoch's losses are {real_loss} and {loss}")
        # The first epoch decodes; the others read from the cache, as every epoch of every later run does.
        seconds = statistics.median(float(epoch["seconds"]) for epoch in epochs[1:])
        reference = statistics.median(before[1:] + after[1:])
        ratio = seconds / reference
        yield Row(
            f"an epoch of the small ViT, 64 images a batch, {name}",
            "the same steps on batches in memory",
            "at most 1.08x the time",
            f"{ratio:.2f}x",
            ratio <= 1.08,
            seconds,
            reference,
            same_work=f"mean loss of the first epoch {real_loss:.5f} and {loss:.5f}",
            note=f"{data}; first epoch, which decodes, {float(epochs[0]['seconds']):.1f} s",
        )
        if not augmentation:
            continue
        work = augmenting_seconds(config)
        least = reference + work / available_cores()
        yield Row(
            f"an epoch of the small ViT, 64 images a batch, {name}: at best",
            "the same steps on batches in memory",
            "",
            f"{least / reference:.2f}x",
            None,
            least,
            reference,
            note=f"reading and augmenting the epoch's images takes one core {work:.2f} s; shared out among "
            f"{available_cores()} cores that the steps keep busy already",
        )


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # an empty cache, and not the user's
        for number, camera in enumerate(CAMERAS):
            yield from input_rows(folder / str(number), camera)
        yield from decoding_rows(folder / "1")
        yield from epoch_rows(folder / "epochs")


if __name__ == "__main__":
    main(rows)
