import hashlib
import multiprocessing
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_images import noise, turned
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from handclip.datasets.images import read_image
from handclip.datasets.pixel_cache import PixelCache, open_pixel_cache
from handclip.datasets.pixels import PixelReader, Squash, seen_part, squash_pixels
from handclip.errors import DataError
from handclip.synthetic import SyntheticHands, render_hand

SQUASH = Squash(24, 20, "bicubic")


def plain(path: Path, squash: Squash) -> Tensor:
    """The steps one by one, as torchvision documents them."""
    interpolation = InterpolationMode(squash.interpolation)
    steps = v2.Compose([v2.PILToTensor(), v2.Resize((squash.height, squash.width), interpolation, antialias=True)])
    return steps(read_image(path))


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> PixelCache:
    return PixelCache(tmp_path / "pixels", 10**7)


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    name=st.sampled_from(["a.jpg", "a.png", "a.tif"]),
    mode=st.sampled_from(["RGB", "L", "RGBA", "1", "P", "CMYK"]),
    orientation=st.integers(1, 8),
    stored_size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    squash=st.builds(
        Squash,
        st.integers(1, 40),
        st.integers(1, 40),
        st.sampled_from(["bicubic", "bilinear", "nearest-exact"]),
        reduced=st.booleans(),
    ),
)
def test_cached_and_uncached_equal_plain(
    tmp_path: Path,
    cache: PixelCache,
    seed: int,
    name: str,
    mode: str,
    orientation: int,
    stored_size: tuple[int, int],
    squash: Squash,
) -> None:
    if name == "a.jpg":
        mode = mode if mode in ("RGB", "L", "CMYK") else "RGB"
        if squash.reduced:  # what is larger is decoded otherwise
            stored_size = min(stored_size[0], 2 * squash.height), min(stored_size[1], 2 * squash.height)
            squash = Squash(squash.height, squash.height, squash.interpolation, reduced=True)
    if name == "a.png" and mode == "CMYK":
        mode = "RGB"
    path = tmp_path / name
    noise(*stored_size, mode, seed).save(path, exif=turned(orientation))
    sha256, expected = hash_of(path), plain(path, squash)
    assert expected.shape == (3, squash.height, squash.width)
    assert torch.equal(PixelReader(squash).read(path, sha256), expected)
    for _ in range(2):  # stored, then loaded
        assert torch.equal(PixelReader(squash, cache).read(path, sha256), expected)
    assert torch.equal(PixelReader(squash, PixelCache(cache.folder, 0)).read(path, sha256), expected)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    mode=st.sampled_from(["shortest", "longest"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    size=st.integers(16, 48),
    photograph=st.tuples(st.integers(20, 160), st.integers(20, 160)),
    seed=st.integers(0, 1000),
)
def test_other_resize_modes_are_open_clips(
    mode: str, interpolation: str, size: int, photograph: tuple[int, int], seed: int
) -> None:
    small = noise(5, 5, seed=seed)
    image = small.resize(photograph, Image.Resampling.BICUBIC)
    theirs = open_clip.image_transform(
        size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, interpolation=interpolation
    )(image)
    ours = squash_pixels(np.array(image), Squash(size, size, interpolation, mode=mode))  # type: ignore[arg-type]
    assert ours.shape == (3, size, size)
    assert (ours - theirs * 255).abs().max() < 2.5  # levels of 255: theirs are resized by Pillow


@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        # White beside black, two to one: what is in the middle of the result, and what at its ends.
        ("squash", (60, 30), (False, False)),
        ("shortest", (60, 30), (False, False)),
        ("longest", (60, 30), (True, True)),
        ("longest", (30, 60), (True, True)),
        ("longest", (30, 30), (False, False)),
    ],
)
def test_longest_fills_up_with_black_and_shortest_cuts_off(
    mode: str, size: tuple[int, int], expected: tuple[bool, bool]
) -> None:
    image = Image.new("RGB", size, (255, 255, 255))
    pixels = squash_pixels(np.array(image), Squash(20, 20, "bicubic", mode=mode))  # type: ignore[arg-type]
    pixels = pixels if size[0] >= size[1] else pixels.transpose(1, 2)
    assert (not pixels[:, 0].any(), not pixels[:, -1].any()) == expected
    assert (pixels[:, 10] == 255).all()
    assert (pixels[:, 5:15] == 255).all()


@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
@pytest.mark.parametrize("size", [(90, 30), (30, 90), (33, 31), (1, 50)])
def test_the_part_that_is_seen_becomes_the_same_pixels_when_squashed(mode: str, size: tuple[int, int]) -> None:
    image = noise(5, 5).resize(size, Image.Resampling.BICUBIC)
    squash = Squash(20, 30, "bilinear", mode=mode)  # type: ignore[arg-type]
    seen = seen_part(image, squash)
    assert (seen == image) == (mode == "squash")
    again, pixels = squash_pixels(np.array(seen), Squash(20, 30, "bilinear")), squash_pixels(np.array(image), squash)
    assert (again.float() - pixels.float()).abs().mean() < 12


def test_a_photograph_is_decoded_once(tmp_path: Path, cache: PixelCache) -> None:
    path = tmp_path / "a.png"
    noise(50, 40).save(path)
    sha256, expected = hash_of(path), plain(path, SQUASH)
    PixelReader(SQUASH, cache).read(path, sha256)
    path.unlink()
    assert torch.equal(PixelReader(SQUASH, cache).read(path, sha256), expected)
    with pytest.raises(DataError, match="does not exist"):
        PixelReader(SQUASH).read(path, sha256)


def test_another_photograph_than_the_named_one_is_refused_and_not_stored(tmp_path: Path, cache: PixelCache) -> None:
    path = tmp_path / "a.png"
    noise(50, 40).save(path)
    with pytest.raises(DataError, match="has changed since the manifest was made"):
        PixelReader(SQUASH, cache).read(path, "0" * 64)
    assert cache.images() == []


def test_what_is_computed_otherwise_is_stored_apart(tmp_path: Path, cache: PixelCache) -> None:
    path = tmp_path / "a.jpg"
    noise(200, 200).save(path)
    squashes = [
        SQUASH,
        Squash(20, 24, "bicubic"),
        Squash(24, 20, "bilinear"),
        Squash(24, 20, "bicubic", reduced=True),
        Squash(24, 20, "bicubic", mode="shortest"),
        Squash(24, 20, "bicubic", mode="longest"),
    ]
    for squash in squashes * 2:
        expected = PixelReader(squash).read(path, hash_of(path))
        assert torch.equal(PixelReader(squash, cache).read(path, hash_of(path)), expected)
    assert {image.kind for image in cache.images()} == {
        "24x20-bicubic",
        "20x24-bicubic",
        "24x20-bilinear",
        "24x20-bicubic-reduced",
        "24x20-bicubic-shortest",
        "24x20-bicubic-longest",
    }


@pytest.mark.parametrize(
    "changed",
    [
        "PIL.__version__",
        "torch.__version__",
        "torchvision.__version__",
        "handclip.datasets.pixels.MARGIN",
        "handclip.datasets.pixels.SIMPLEJPEG_VERSION",
        "handclip.datasets.pixels.HEIF_VERSION",
    ],
)
def test_other_versions_share_nothing(monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    from handclip.datasets import pixels

    group = SQUASH.group
    monkeypatch.setattr(changed, "0.0")
    pixels._versions.cache_clear()
    try:
        assert SQUASH.group != group
    finally:
        pixels._versions.cache_clear()


def test_claimed_images_are_not_displaced_by_their_own_run(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        noise(24, 20, seed=number).save(path)
    hashes = [hash_of(path) for path in paths]
    folder, limit = tmp_path / "pixels", 3 * 4096
    for path, sha256 in zip(paths, hashes, strict=True):
        PixelReader(SQUASH, PixelCache(folder, 10**6)).read(path, sha256)
    reader = PixelReader(SQUASH, cache := PixelCache(folder, limit))
    reader.claim(hashes[3:])
    cache.try_writing()
    assert sorted(image.path.stem for image in cache.images()) == sorted(hashes[3:])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Hands of 640 x 480 pixels, with the noise of a camera's sensor and without, as cameras compress them."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number, aspect in enumerate(("dorsal_r", "palmar_l")):
        hand = render_hand(SyntheticHands(size=640), number, aspect, 0).crop((0, 80, 640, 560))
        hand.save(folder / f"{number}.jpg", quality=90)
        noisy = np.asarray(hand) + rng.normal(0, 6, (480, 640, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"noisy{number}.jpg", quality=90)
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    ("height", "width", "levels"), [(50, 50, 8), (100, 104, 4), (120, 100, 4), (200, 200, 4), (208, 150, 4)]
)
def test_reduced_decoding_keeps_to_its_tolerance(photographs: list[Path], height: int, width: int, levels: int) -> None:
    exact, reduced = Squash(height, width, "bicubic"), Squash(height, width, "bicubic", reduced=True)
    for path in photographs:
        found = PixelReader(reduced).read(path, hash_of(path))
        difference = (found.double() - plain(path, exact).double()).abs()
        assert 0 < difference.mean() < 1
        assert difference.quantile(0.999) <= levels


@pytest.mark.parametrize(("height", "width"), [(210, 100), (100, 280), (480, 640), (600, 600)])
def test_reduced_decoding_leaves_photographs_below_twice_the_size_as_they_are(
    photographs: list[Path], height: int, width: int
) -> None:
    for path in photographs:
        found = PixelReader(Squash(height, width, "bicubic", reduced=True)).read(path, hash_of(path))
        assert torch.equal(found, plain(path, Squash(height, width, "bicubic")))


class Photographs(Dataset[Tensor]):
    def __init__(self, paths: list[Path], reader: PixelReader) -> None:
        self.images = [(path, hash_of(path)) for path in paths]
        self.reader = reader

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.reader.read(*self.images[index])


def test_worker_processes_share_the_cache(photographs: list[Path]) -> None:
    cache = open_pixel_cache(0.01)
    assert cache is not None
    data = Photographs(photographs, PixelReader(SQUASH, cache))
    expected = torch.stack([plain(path, SQUASH) for path in photographs])
    for _ in range(2):
        loader = DataLoader(
            data, batch_size=3, num_workers=2, multiprocessing_context=multiprocessing.get_context("fork")
        )
        assert torch.equal(torch.cat(list(loader)), expected)
        assert len(cache.images()) == len(photographs)
