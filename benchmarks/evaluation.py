"""Evaluation from features made once, against a plain loop that embeds query and gallery anew for every draw.

The small, untrained ViT on dorsal right hands of the real sample, where it lies beside the repository, else on
synthetic hands; the work does not depend on what the weights are.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from harness import Row, extra_memory, main, require, seconds_of, speedup_row
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import parse_config
from handclip.datasets.images import read_image
from handclip.datasets.manifest import Manifest
from handclip.datasets.prepare import prepare
from handclip.datasets.transforms import ImageTransform
from handclip.metrics import rank_gallery
from handclip.models.builder import build_model
from handclip.parallel.hardware import choose_workers
from handclip.retrieval.summary import METRICS
from handclip.runs.evaluate import Evaluation, evaluate
from handclip.synthetic import SyntheticHands, generate

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "hands11k_sample"
HANDS = SyntheticHands(identities=40, images_per_aspect=5, size=160)

Means = dict[tuple[str, str], dict[str, float]]


class Folder(Dataset[Tensor]):
    """The images of one side of a draw, made ready for the model."""

    def __init__(self, paths: Sequence[Path], transform: ImageTransform) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(read_image(self.paths[index]))


def plain_loop(manifest: Manifest, config: ExperimentConfig, workers: int) -> Means:
    """Embed the images of each query and gallery folder for every draw and setting, with a loader for each folder."""
    torch.manual_seed(config.seed)
    model = build_model(config).eval()
    transform = ImageTransform(model.encoder.preprocessing)

    @torch.no_grad()
    def embed(indices: tuple[int, ...], flip: str) -> np.ndarray:
        parts = []
        folder = Folder([manifest.path_of(index) for index in indices], transform)
        # As for features made once: a worker only where there is more than a batch for it to read.
        of_folder = min(workers, len(folder) // config.eval_batch_size)
        for images in DataLoader(folder, batch_size=config.eval_batch_size, num_workers=of_folder):
            features = model.embed(images)
            parts.append(features + model.embed(images.flip(-1)) if flip == "sum" else features)
        return torch.cat(parts).numpy()

    means = {}
    for protocol in ("gallery", "gallery_all"):
        for flip in ("none", "sum"):
            draws = []
            for draw in manifest.draws:
                gallery = getattr(draw, protocol)
                labels = [[manifest.images[index].identity for index in side] for side in (draw.query, gallery)]
                result = rank_gallery(embed(draw.query, flip), embed(gallery, flip), *labels)
                draws.append((result.rank(1), result.rank(5), result.rank(10), result.map, result.map_trapezoid))
            means[protocol, flip] = dict(zip(METRICS, np.mean(draws, axis=0), strict=True))
    return means


def prepare_hands(folder: Path) -> str:
    """Write the manifests of the real sample, or of synthetic hands; return which."""
    if SAMPLE.is_dir():
        prepare("11k", SAMPLE, folder / "manifests", allow_missing=True)
        return "the real sample"
    generate(folder / "hands", HANDS)
    prepare("11k", folder / "hands", folder / "manifests")
    return "synthetic hands"


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        hands = prepare_hands(folder)
        values = {
            "experiment": "benchmark",
            "model": "vit_small",
            "pretrained": "none",
            "dataset": "11k",
            "variant": "baseline",
            "manifest": folder / "manifests",
            "eval_dir": folder / "eval_logs",
            "pixel_cache_gib": 0,
        }
        config = parse_config(values, source="benchmark")
        manifest = Manifest.load(folder / "manifests" / "manifest_dorsal_r.json")
        done: list[Evaluation] = []
        expected: list[Means] = []
        with extra_memory() as extra:
            seconds = seconds_of(lambda: done.append(evaluate(config, overwrite=True)), repeats=3)
        workers = choose_workers(config.num_workers)
        reference_seconds = seconds_of(lambda: expected.append(plain_loop(manifest, config, workers)))

    for (protocol, flip), means in expected[0].items():
        ours = done[-1].result(protocol, flip)["mean"]
        for name, value in means.items():
            difference = abs(ours[name] - value)
            require(difference < 1e-12, f"{protocol}, flip {flip}: {name} is {ours[name]}, expected {value}")
    yield speedup_row(
        f"evaluation of ten draws, both galleries, both flips, small ViT, {hands}",
        "query and gallery embedded anew for every draw, a DataLoader for each folder, with as many workers",
        reference_seconds=reference_seconds,
        seconds=seconds,
        target=9,
        extra_mib=extra[0],
        same_work="all twenty means equal to 1e-12",
        note=f"{done[-1].metrics['distinct_images']} distinct images of dorsal right; with all records written; "
        f"worker processes at most: {workers}",
    )


if __name__ == "__main__":
    main(rows)
