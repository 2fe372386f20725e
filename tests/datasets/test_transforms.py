import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from handclip.config.experiment import Augmentation
from handclip.datasets.images import read_image
from handclip.datasets.pixels import squash_pixels
from handclip.datasets.torch_dataset import BatchCollator, ImageDataset, LabelledImage, to_images
from handclip.datasets.transforms import CLIP_MEAN, CLIP_STD, ImageTransform, Preprocessing

COLOUR = (200, 100, 30)
STRONG: dict[str, dict[str, Any]] = {
    "resize_crop": {"resize_crop": 1.3},
    "flip": {"flip": 1.0},
    "rotation": {"rotation": 45},
    "scale": {"scale": 0.4},
    "color_jitter": {"color_jitter": 0.5},
    "erasing": {"erasing": 1.0},
}


def photograph(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    """Smooth coloured noise with no symmetry."""
    noise = np.random.default_rng(seed).integers(256, size=(5, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def normalised(colour: tuple[int, int, int], preprocessing: Preprocessing) -> Tensor:
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return (torch.tensor(colour) / 255 - mean) / std


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(32, 32),
        Preprocessing(48, 16),
        Preprocessing(16, 16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear"),
    ],
)
def test_d01_a_constant_image_has_the_closed_form_in_every_phase(tmp_path: Path, preprocessing: Preprocessing) -> None:
    path = tmp_path / "constant.png"
    Image.new("RGB", (50, 70), COLOUR).save(path)
    image = LabelledImage(path, hashlib.sha256(path.read_bytes()).hexdigest(), label=3)
    expected = normalised(COLOUR, preprocessing)[:, None, None].expand(3, preprocessing.height, preprocessing.width)
    evaluation = ImageDataset([image], ImageTransform(preprocessing))
    training = ImageDataset([image], ImageTransform(preprocessing, Augmentation()))
    moving = Augmentation(resize_crop=1.2, flip=0.5)
    augmented = ImageDataset([image], ImageTransform(preprocessing, moving))
    for dataset, item in ((evaluation, 0), (training, (0, 123)), (augmented, (0, 5))):
        batch = BatchCollator(dataset.transform, torch.device("cpu"))([dataset[item]])
        assert batch.labels.tolist() == [3]
        image = to_images(batch, dataset.transform, torch.device("cpu"))[0]
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)


def test_d01_training_without_augmentation_is_evaluation() -> None:
    preprocessing = Preprocessing(32, 24)
    image = photograph()
    assert torch.equal(
        ImageTransform(preprocessing, Augmentation())(image, seed=7), ImageTransform(preprocessing)(image)
    )


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16", "RGB"])
def test_an_image_of_any_mode_becomes_what_its_file_becomes(mode: str, tmp_path: Path) -> None:
    """From a notebook, as `Image.open(...)` or `Image.fromarray(...)`."""
    grey = np.asarray(photograph().convert("L"), dtype=np.uint16)
    image = Image.fromarray(grey * 257) if mode == "I;16" else photograph().convert(mode)
    path = tmp_path / ("image.ppm" if mode == "RGB" else "image.tif")
    image.save(path)
    transform = ImageTransform(Preprocessing(24, 32))
    assert torch.equal(transform(Image.open(path)), transform(read_image(path)))
    assert torch.equal(transform(image), transform(read_image(path)))


def test_an_image_without_a_defined_white_is_refused() -> None:
    with pytest.raises(ValueError, match="floating-point numbers without a defined white"):
        ImageTransform(Preprocessing(24, 32))(photograph().convert("F"))
    with pytest.raises(ValueError, match="32-bit numbers without a defined white"):
        ImageTransform(Preprocessing(24, 32))(photograph().convert("I"))


def test_clips_normalisation_is_the_default() -> None:
    assert CLIP_MEAN == (0.48145466, 0.4578275, 0.40821073)
    assert CLIP_STD == (0.26862954, 0.26130258, 0.27577711)
    assert Preprocessing(1, 1).interpolation == "bicubic"


@pytest.mark.parametrize("size", [(100, 20), (20, 100)])
def test_a_photograph_is_squashed_and_not_cropped(size: tuple[int, int]) -> None:
    """The outermost ninths keep their place, whatever the aspect ratio."""
    image = Image.new("RGB", (3, 3))
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    for corner, colour in zip([(0, 0), (2, 0), (0, 2), (2, 2)], colours, strict=True):
        image.putpixel(corner, colour)
    image = image.resize(size, Image.Resampling.NEAREST)
    preprocessing = Preprocessing(16, 16)
    pixels = ImageTransform(preprocessing)(image)
    assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.float32
    for (row, column), colour in zip([(0, 0), (0, 15), (15, 0), (15, 15)], colours, strict=True):
        torch.testing.assert_close(pixels[:, row, column], normalised(colour, preprocessing), rtol=0, atol=0.05)


@pytest.mark.parametrize("size", [(32, 32), (48, 16), (16, 40)])
@pytest.mark.parametrize("name", STRONG)
def test_every_augmentation_has_an_effect_and_keeps_the_size(name: str, size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(*size)
    image = photograph()
    plain = ImageTransform(preprocessing)(image)
    augment = ImageTransform(preprocessing, Augmentation(**STRONG[name]))
    first, again, other = augment(image, seed=1), augment(image, seed=1), augment(image, seed=2)
    assert first.shape == plain.shape == (3, *size)
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert (first - plain).abs().max() > 0.05
    if name == "flip":
        assert torch.equal(first, plain.flip(-1))
    else:
        assert not torch.equal(first, other)


def test_probabilities_are_kept() -> None:
    image = photograph(16, 16)
    plain = ImageTransform(Preprocessing(16, 16))(image)
    for augmentation in (Augmentation(flip=0.3), Augmentation(erasing=0.3)):
        augment = ImageTransform(Preprocessing(16, 16), augmentation)
        changed = np.mean([not torch.equal(augment(image, seed=seed), plain) for seed in range(300)])
        assert 0.2 < changed < 0.4


def test_uncovered_corners_and_erased_parts_get_the_mean_colour() -> None:
    image = Image.new("RGB", (32, 32), (255, 255, 255))
    erased = ImageTransform(Preprocessing(32, 32), Augmentation(erasing=1.0))(image, seed=0)
    hidden = (erased == 0).all(dim=0)
    assert 0.02 <= hidden.float().mean() <= 0.45
    assert (erased[:, ~hidden] > 1).all()
    rotated = ImageTransform(Preprocessing(32, 32), Augmentation(rotation=45))(image, seed=3)
    assert rotated[:, 0, 0].abs().max() < 0.01


def test_the_seed_alone_decides() -> None:
    """Neither the order of the images nor the global random state has a say."""
    augment = ImageTransform(
        Preprocessing(24, 24), Augmentation(resize_crop=1.2, flip=0.5, color_jitter=0.4, erasing=0.5)
    )
    images = [photograph(seed=seed) for seed in range(4)]
    torch.manual_seed(0)
    forward = [augment(image, seed=seed) for seed, image in enumerate(images)]
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    backward = [augment(images[seed], seed=seed) for seed in (3, 2, 1, 0)][::-1]
    assert all(torch.equal(one, other) for one, other in zip(forward, backward, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_augmenting_needs_a_seed() -> None:
    with pytest.raises(ValueError, match="needs a seed"):
        ImageTransform(Preprocessing(16, 16), Augmentation(flip=0.5))(photograph())


def test_preprocessing_round_trip() -> None:
    preprocessing = Preprocessing(48, 16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear")
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    assert isinstance(preprocessing.to_dict()["mean"], list)


def test_squashing_and_normalising_on_a_cpu_wait_for_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where other processes hold the cores, threads that wait for each other took a hundred times as long."""
    used: list[int] = []

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any, **named: Any) -> Any:
            used.append(torch.get_num_threads())
            return function(*given, **named)

        return noted

    transform = ImageTransform(Preprocessing(16, 16))
    monkeypatch.setattr(transform, "_transform", noting(transform._transform))
    monkeypatch.setattr("handclip.datasets.pixels.resize", noting(resize))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        squashed = squash_pixels(np.array(photograph()), transform.squash)
        transform.batch(squashed.expand(20, -1, -1, -1))
        assert used == [1, 1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
