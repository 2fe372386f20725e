"""Evaluating a model by the protocol: every draw, gallery and flip setting from features made once."""

import csv
import hashlib
import io
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handclip.config.experiment import ExperimentConfig
from handclip.config.naming import run_name
from handclip.console import progress_over
from handclip.datasets.manifest import Manifest
from handclip.datasets.torch_dataset import LabelledImage
from handclip.engine.data import check_not_tested_on, combined_sha256, find_manifests, people_known_from_other_aspects
from handclip.engine.features import Features, extract_features
from handclip.engine.hardware import choose_device, choose_workers
from handclip.engine.run_folder import RunFolder
from handclip.errors import CheckpointError, DataError, HandCLIPError, missing_file
from handclip.files import read_json, require_writable, write_json, write_text
from handclip.metrics import RankingResult, rank_gallery
from handclip.models.builder import build_model, model_from_checkpoint
from handclip.models.checkpoint import Checkpoint, check_same_model
from handclip.models.embedding_model import EmbeddingModel

logger = logging.getLogger(__name__)

METRICS = ("rank1", "rank5", "rank10", "map", "map_trapezoid")

Setting = tuple[str, str]
"""Gallery protocol and flip setting."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a run, as written to `metrics.json`, and where they are."""

    run: str
    folder: Path
    metrics: dict[str, Any]

    @property
    def gallery_protocols(self) -> tuple[str, ...]:
        """The gallery protocols that were evaluated."""
        return tuple(dict.fromkeys(entry["gallery_protocol"] for entry in self.metrics["results"]))

    def result(self, gallery_protocol: str, flip: str) -> dict[str, Any]:
        """Return the entry of `results` for one gallery protocol and flip setting."""
        for entry in self.metrics["results"]:
            if (entry["gallery_protocol"], entry["flip"]) == (gallery_protocol, flip):
                return dict(entry)
        raise KeyError(f"{gallery_protocol}, flip {flip} was not evaluated")


def evaluate(config: ExperimentConfig, *, overwrite: bool = False, reuse: bool = False) -> Evaluation:
    """Evaluate a baseline or a trained model and write `eval_logs/<run>/`.

    `metrics.json` holds what was measured, `per_split.csv` each draw, `per_query.csv` the rank of the right identity
    for each query. Evaluating the same model on the same manifest again writes the same numbers.

    Args:
        config: a baseline, or the experiment that trained the model.
        overwrite: replace another evaluation of the same name.
        reuse: where this very evaluation was done before, return what it wrote.

    Raises:
        HandCLIPError: model or data are missing or do not fit, or the folder holds another evaluation.
    """
    start = time.perf_counter()
    run = run_name(config)
    folder = config.eval_dir / run
    require_writable(folder)
    device = choose_device(config.device)
    # The model comes first: what is wrong with the config should show before images are read.
    model, checkpoint = _load_model(config)
    manifests = find_manifests(config)
    if checkpoint is not None:
        _warn_of_unfinished_training(config)
        check_not_tested_on(checkpoint.training_images, manifests, str(checkpoint_path(config)))
    known = people_known_from_other_aspects(checkpoint.identities if checkpoint else [], manifests)
    if any(known.values()):
        logger.info(
            "Test people whose other hand or side was trained on: "
            + ", ".join(f"{aspect} {count}" for aspect, count in known.items() if count)
        )
    identity = {
        "run": run,
        "dataset": config.dataset,
        "aspect": config.aspect,
        "model": config.model,
        "checkpoint": str(checkpoint_path(config)) if checkpoint is not None else None,
        "weights_sha256": _weights_sha256(model),
        "manifest_sha256": combined_sha256(manifests),
        "settings": {
            "num_splits": config.num_splits,
            "gallery_protocols": list(config.gallery_protocols),
            "flip_settings": list(config.flip_settings),
            "test_feature": config.test_feature,
        },
    }
    before = read_json(folder / "metrics.json") if (folder / "metrics.json").exists() else None
    if before is not None and not overwrite:
        _refuse_other_evaluation(folder / "metrics.json", before, identity)
        if reuse:
            return Evaluation(run, folder, before)
    with progress_over(f"embedding images of {run}") as report:
        features = _extract_all(config, manifests, model.to(device), device, report)
    rankings = {aspect: _rank_all(config, manifest, features) for aspect, manifest in manifests.items()}
    metrics: dict[str, Any] = {
        **identity,
        "trained_epochs": checkpoint.epoch if checkpoint else 0,
        "feature_dim": model.feature_dim,
        "parameters": sum(parameter.numel() for parameter in model.encoder.parameters()),
        "distinct_images": len(features.images),
        "missing_images": sum(manifest.missing_images for manifest in manifests.values()),
        "unreadable_images": sum(manifest.unreadable_images for manifest in manifests.values()),
        "test_people_known_from_other_aspects": sum(known.values()),
        "seconds": round(time.perf_counter() - start, 2),
        "results": _summarise(rankings),
    }
    if len(rankings) > 1:
        metrics["per_aspect"] = {
            aspect: {"manifest_sha256": manifests[aspect].sha256, "results": _summarise({aspect: ranking})}
            for aspect, ranking in rankings.items()
        }
    write_text(folder / "per_split.csv", _per_split_csv(rankings))
    write_text(folder / "per_query.csv", _per_query_csv(rankings, manifests))
    write_json(folder / "metrics.json", metrics)
    return Evaluation(run, folder, metrics)


def require_no_evaluation(config: ExperimentConfig) -> None:
    """Check that an experiment about to be trained has not been evaluated, before hours are spent on it.

    Raises:
        HandCLIPError: names the evaluation that is in the way.
    """
    metrics = config.eval_dir / run_name(config) / "metrics.json"
    if metrics.exists():
        raise HandCLIPError(f"{metrics} holds an earlier evaluation of a run of this name; move {metrics.parent} away")


def _warn_of_unfinished_training(config: ExperimentConfig) -> None:
    files = RunFolder.of(config)
    if config.checkpoint is None and files.folder.is_dir() and not files.result.is_file():
        logger.warning(f"Training of this run has not ended: what is evaluated is the best so far. See {files.folder}/")


def checkpoint_path(config: ExperimentConfig) -> Path:
    """Return the checkpoint that a `finetuned` config evaluates."""
    return config.checkpoint or config.save_dir / f"{run_name(config)}.pth"


def _load_model(config: ExperimentConfig) -> tuple[EmbeddingModel, Checkpoint | None]:
    if config.variant == "baseline" and config.checkpoint is None:
        # Only `pretrained: none` draws weights; the same seed then gives the model that training starts from.
        torch.manual_seed(config.seed)
        return build_model(config), None
    path = checkpoint_path(config)
    if not path.exists():
        raise missing_file(path, "*.pth", key="checkpoint" if config.checkpoint else "this run is not trained yet")
    checkpoint = Checkpoint.load(path)
    check_same_model(checkpoint, config.to_dict(), path)
    if checkpoint.config["bnneck"] != config.bnneck:
        has = "has a BNNeck" if checkpoint.config["bnneck"] else "has no BNNeck"
        raise CheckpointError(f"{path}: {has}, but the config says bnneck: {str(config.bnneck).lower()}")
    return model_from_checkpoint(checkpoint, str(path), config.test_feature), checkpoint


def _weights_sha256(model: EmbeddingModel) -> str:
    """Return a hash of the weights alone; that of the file depends on where and when it was written."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _FeatureTable:
    """Features of each distinct image, by path and by flip setting."""

    images: dict[Path, int]
    by_flip: dict[str, Features]

    def of(self, manifest: Manifest, indices: tuple[int, ...], flip: str) -> Features:
        rows = [self.images[manifest.path_of(index)] for index in indices]
        return self.by_flip[flip][rows]


def _extract_all(
    config: ExperimentConfig,
    manifests: Mapping[str, Manifest],
    model: EmbeddingModel,
    device: torch.device,
    report: Callable[[int, int], None],
) -> _FeatureTable:
    wanted: dict[Path, LabelledImage] = {}
    for manifest in manifests.values():
        for index in _used_images(config, manifest):
            # No label goes in: ranking is scored later.
            path = manifest.path_of(index)
            wanted[path] = LabelledImage(path, manifest.images[index].sha256, label=-1)
    images = sorted(wanted.values(), key=lambda image: str(image.path))
    plain, mirrored = extract_features(
        model,
        images,
        device=device,
        batch_size=config.eval_batch_size,
        num_workers=choose_workers(config.num_workers),
        flip="sum" in config.flip_settings,
        progress=report,
    )
    by_flip = {"none": plain} if mirrored is None else {"none": plain, "sum": plain + mirrored}
    return _FeatureTable({image.path: row for row, image in enumerate(images)}, by_flip)


def _used_images(config: ExperimentConfig, manifest: Manifest) -> list[int]:
    if config.num_splits > len(manifest.draws):
        raise DataError(
            f"num_splits: {config.num_splits}: the {manifest.aspect} manifest has {len(manifest.draws)} draws"
        )
    used: set[int] = set()
    for draw in manifest.draws[: config.num_splits]:
        used.update(draw.query, draw.gallery)
        if "gallery_all" in config.gallery_protocols:
            used.update(draw.gallery_all)
    return sorted(used)


Rankings = dict[Setting, list[RankingResult]]


def _rank_all(config: ExperimentConfig, manifest: Manifest, features: _FeatureTable) -> Rankings:
    """Rank every draw under every setting that the data set has."""
    rankings: Rankings = {}
    for protocol in config.gallery_protocols:
        if protocol not in manifest.gallery_protocols:
            continue
        for flip in config.flip_settings:
            rankings[protocol, flip] = [
                _rank_draw(manifest, draw.query, getattr(draw, protocol), features, flip)
                for draw in manifest.draws[: config.num_splits]
            ]
    if not rankings:
        raise DataError(
            f"gallery_protocols: {', '.join(config.gallery_protocols)}: {manifest.dataset} has only "
            f"{', '.join(manifest.gallery_protocols)}"
        )
    return rankings


def _rank_draw(
    manifest: Manifest, query: tuple[int, ...], gallery: tuple[int, ...], features: _FeatureTable, flip: str
) -> RankingResult:
    try:
        return rank_gallery(
            features.of(manifest, query, flip),
            features.of(manifest, gallery, flip),
            [manifest.images[index].identity for index in query],
            [manifest.images[index].identity for index in gallery],
        )
    except ValueError as error:
        raise DataError(f"{manifest.dataset} {manifest.aspect} cannot be evaluated: {error}") from error


def _values(result: RankingResult) -> dict[str, float]:
    return {
        "rank1": result.rank(1),
        "rank5": result.rank(5),
        "rank10": result.rank(10),
        "map": result.map,
        "map_trapezoid": result.map_trapezoid,
    }


def _summarise(rankings: Mapping[str, Rankings]) -> list[dict[str, Any]]:
    """Return one entry for each setting; over several aspects, draw i is the mean of the aspects' draws i."""
    entries = []
    for setting in next(iter(rankings.values())):
        by_aspect = [[_values(result) for result in ranking[setting]] for ranking in rankings.values()]
        splits = [
            {name: float(np.mean([values[name] for values in draws])) for name in METRICS}
            for draws in zip(*by_aspect, strict=True)
        ]
        results = [result for ranking in rankings.values() for result in ranking[setting]]
        entries.append(
            {
                "gallery_protocol": setting[0],
                "flip": setting[1],
                "num_splits": len(splits),
                "mean": {name: float(np.mean([split[name] for split in splits])) for name in METRICS},
                "std": {name: float(np.std([split[name] for split in splits])) for name in METRICS},
                "splits": splits,
                "queries": sum(ranking[setting][0].num_queries for ranking in rankings.values()),
                "gallery_images": [ranking[setting][0].num_gallery for ranking in rankings.values()],
                "unmatched_queries": sum(result.unmatched_queries for result in results),
            }
        )
    return entries


def _refuse_other_evaluation(path: Path, before: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    for key, value in identity.items():
        if before.get(key) != value:
            raise HandCLIPError(
                f"{path} holds an evaluation with {key}: {before.get(key)}, not {value}. "
                "Add --overwrite to replace it, or choose another eval_dir"
            )


def _per_split_csv(rankings: Mapping[str, Rankings]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        ["aspect", "gallery_protocol", "flip", "split", *METRICS, "queries", "gallery_images", "unmatched_queries"]
    )
    for aspect, ranking in rankings.items():
        for (protocol, flip), results in ranking.items():
            for split, result in enumerate(results):
                counts = [result.num_queries, result.num_gallery, result.unmatched_queries]
                writer.writerow([aspect, protocol, flip, split, *_values(result).values(), *counts])
    return text.getvalue()


def _per_query_csv(rankings: Mapping[str, Rankings], manifests: Mapping[str, Manifest]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["aspect", "gallery_protocol", "flip", "split", "image", "identity", "rank"])
    for aspect, ranking in rankings.items():
        manifest = manifests[aspect]
        for (protocol, flip), results in ranking.items():
            for split, result in enumerate(results):
                for index, rank in zip(manifest.draws[split].query, result.first_ranks, strict=True):
                    image = manifest.images[index]
                    writer.writerow([aspect, protocol, flip, split, image.path, image.identity, int(rank)])
    return text.getvalue()
