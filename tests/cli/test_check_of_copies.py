from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_study import load_manifest

from handclip.datasets.manifest import Manifest


def with_copy(manifest: Manifest, index: int, of: int) -> Manifest:
    images = list(manifest.images)
    images[index] = replace(images[index], sha256=images[of].sha256)
    return replace(manifest, images=tuple(images))


def test_check_says_what_copies_do_to_the_numbers(handclip: Callable[..., Any], manifests: Path, here: Path) -> None:
    manifest = load_manifest(manifests)
    first, of = manifest.draws[0].query[0], manifest.draws[0].gallery[0]
    validated = with_copy(manifest, manifest.val[0], manifest.train[0])
    with_copy(validated, first, of).save(here / "manifest_dorsal_r.json")
    answer = handclip("prepare", "--check", here)
    assert answer.code == 0
    assert "keeps to the protocol" in answer.out
    said = " ".join((answer.out + answer.err).split())
    paths = {index: manifest.images[index].path for index in (first, of, manifest.val[0], manifest.train[0])}
    assert f"queries the gallery holds the very same photograph (such as {paths[first]} and {paths[of]})" in said
    assert f"The training images hold the very same photograph as 1 of {len(manifest.val)} validation images" in said

    with_copy(manifest, first, manifest.train[0]).save(here / "manifest_dorsal_r.json")
    answer = handclip("prepare", "--check", here)
    assert answer.code == 1
    assert "keeps to the protocol" not in answer.out
    assert (
        "test has 1 image of which train and val hold the very same photograph (such as "
        f"{paths[first]} and {paths[manifest.train[0]]})"
    ) in answer.err
