import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_images import leave_without_home
from PIL import Image

from handclip.datasets.inspection import inspect_image
from handclip.datasets.pixel_cache import PixelCache, open_pixel_cache, pixel_folder
from handclip.datasets.pixels import PixelReader, Squash

Handclip = Callable[..., Any]


@pytest.fixture
def cache(tmp_path: Path) -> PixelCache:
    """Three images in two sizes."""
    cache = open_pixel_cache(1)
    assert cache is not None
    for number, squash in enumerate(
        [Squash(32, 32, "bicubic"), Squash(32, 32, "bicubic"), Squash(64, 48, "bicubic", True)]
    ):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (40, 40), (number, 0, 0)).save(path)
        PixelReader(squash, cache).read(path, inspect_image(path).sha256)
    return cache


def test_info(handclip: Handclip, cache: PixelCache) -> None:
    answer = handclip("cache", "info")
    assert answer.code == 0
    assert f"Pixel cache: {pixel_folder()}\n" in answer.out
    assert "Holds 3 images (0.0 MiB)" in answer.out
    assert "its limit is 10 GiB" in answer.out
    assert "  32x32-bicubic: 2 images" in answer.out
    assert "  64x48-bicubic-reduced: 1 image (0.0 MiB)" in answer.out
    assert "photographs of hands" in answer.out


def test_info_for_programs(handclip: Handclip, cache: PixelCache) -> None:
    facts = json.loads(handclip("cache", "info", "--json").out)
    assert facts["folder"] == str(pixel_folder())
    assert facts["default_limit_gib"] == 10
    assert (facts["images"], facts["bytes"]) == (3, 2 * 4096 + 3 * 4096)
    assert [(kind["kind"], kind["images"]) for kind in facts["kinds"]] == [
        ("32x32-bicubic", 2),
        ("64x48-bicubic-reduced", 1),
    ]
    assert facts["oldest_use"] == min(kind["oldest_use"] for kind in facts["kinds"])


def test_info_of_an_empty_cache_makes_no_folder(handclip: Handclip) -> None:
    out = handclip("cache", "info").out
    assert "Holds 0 images" in out
    assert "photographs" not in out
    assert json.loads(handclip("cache", "info", "--json").out)["oldest_use"] is None
    assert not pixel_folder().exists()


def test_clear_keeps_the_manifests(handclip: Handclip, cache: PixelCache) -> None:
    manifest = pixel_folder().with_name("manifests") / "11k" / "manifest_dorsal_r.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    answer = handclip("cache", "clear")
    assert answer.code == 0
    assert f"Removed 3 images (0.0 MiB) from {pixel_folder()}." in answer.out
    assert f"Manifests, in {pixel_folder().with_name('manifests')}, are kept." in answer.out
    assert manifest.exists()
    assert not pixel_folder().exists()
    assert "Removed 0 images" in handclip("cache", "clear").out


def test_clear_under_a_run(handclip: Handclip, cache: PixelCache, tmp_path: Path) -> None:
    reader, path = PixelReader(Squash(32, 32, "bicubic"), cache), tmp_path / "0.png"
    before = reader.read(path, inspect_image(path).sha256)
    handclip("cache", "clear")
    assert torch.equal(reader.read(path, inspect_image(path).sha256), before)
    assert len(cache.images()) == 1


def test_something_else_in_the_place_of_the_folder(handclip: Handclip) -> None:
    pixel_folder().parent.mkdir(parents=True)
    pixel_folder().write_text("mine")
    for command in ("info", "clear"):
        answer = handclip("cache", command)
        assert answer.code == 1
        assert f"cannot read the pixel cache in {pixel_folder()}: Not a directory" in " ".join(answer.err.split())


def test_without_a_home(handclip: Handclip, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_without_home(monkeypatch)
    for command in ("info", "clear"):
        answer = handclip("cache", command)
        assert answer.code == 1
        assert "XDG_CACHE_HOME" in answer.err
