"""Evaluating a model by the protocol: every draw, gallery and flip setting from features made once."""

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from handclip.checksums import faults, require_intact, write_checksums
from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import read_yaml
from handclip.config.naming import evaluation_name, run_name
from handclip.console import progress_over
from handclip.datasets.attributes import attributes_of
from handclip.datasets.images import read_image
from handclip.datasets.manifest import Manifest
from handclip.datasets.pixel_cache import open_pixel_cache
from handclip.engine.cost import evaluation_cost, training_cost
from handclip.engine.data import check_not_tested_on, combined_sha256, find_manifests, people_known_from_other_aspects
from handclip.engine.distributed import current, first_before_others, on_first, own_device
from handclip.engine.evaluated_model import EvaluatedModel, load_evaluated_model
from handclip.engine.explaining import explain_photographs, hands_to_explain
from handclip.engine.feature_table import FeatureTable, embed_images, images_of_draws, validation_images
from handclip.engine.hardware import describe_environment
from handclip.engine.launching import launched, on_devices, starts_processes
from handclip.engine.provenance import Session, run_facts, session
from handclip.engine.ranking import Rankings, rank_draws, require_rankable
from handclip.engine.records import (
    AGAIN,
    Explanation,
    KeptFeatures,
    manifest_file,
    write_attributes,
    write_explanations,
    write_features,
)
from handclip.engine.run_folder import RunFolder, write_config
from handclip.engine.summary import per_query_csv, per_split_csv, summarise
from handclip.errors import DamagedFileError, HandCLIPError
from handclip.file_names import (
    ATTRIBUTES,
    CHECKSUMS,
    CONFIG,
    COST,
    ENVIRONMENT,
    EXPLANATIONS,
    FEATURES,
    METRICS_FILE,
    PER_QUERY,
    PER_SPLIT,
)
from handclip.files import (
    read_json,
    remove_abandoned,
    replacing_together,
    require_writable,
    write_json,
    write_text,
)
from handclip.locks import holding, refuse_if_held

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a run, as written to `metrics.json`, and where they are."""

    run: str
    folder: Path
    metrics: dict[str, Any]
    was_there: bool = field(default=False, compare=False)
    """Whether it had been done before, and nothing was computed."""

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
    and both APs for each query; `cost.json` what it cost on this machine, `config.yml` and `environment.json` how it
    was made; the others, see `engine.records`, are what reports are made from. `SHA256SUMS` holds the checksums of
    them all and is written last: where it stands, the evaluation is complete. An earlier evaluation stays until all
    files of the new one are written. Evaluating the same model on the same manifest again writes the same metrics,
    except for their `seconds`. A model that was trained on other data, as a `checkpoint` can be, is evaluated across
    domains, in `eval_logs/<run>_on_<dataset>_<aspect>/`.

    Args:
        config: a baseline, or the experiment that trained the model.
        overwrite: replace another evaluation of the same name.
        reuse: where this very evaluation was done before, with the same photographs explained, and all its files are
            what it wrote, return its metrics; from a folder that cannot be written, too.

    Raises:
        HandCLIPError: model or data are missing or do not fit, or the folder holds another evaluation.
        InUseError: another process writes to the folder.
    """
    folder = evaluation_folder(config)
    try:
        require_writable(folder)
    except HandCLIPError:
        if reuse and (earlier := _earlier(config, _subject(config), overwrite, reuse)):
            return earlier
        raise
    if launched() is None:  # else it may be another process of this very evaluation
        refuse_if_held(folder)
    if reuse and starts_processes(config) and (earlier := _earlier(config, _subject(config), overwrite, reuse)):
        return earlier
    return on_devices(_evaluate, config, overwrite=overwrite, reuse=reuse)


@dataclass(frozen=True)
class _Subject:
    """What is evaluated, on what; `known` counts the test people of each aspect that training knew otherwise."""

    evaluated: EvaluatedModel
    manifests: dict[str, Manifest]
    known: dict[str, int]
    identity: dict[str, Any]
    folder: Path


def _subject(config: ExperimentConfig) -> _Subject:
    # The model comes first: what is wrong with the config should show before images are read.
    evaluated = load_evaluated_model(config)
    manifests = first_before_others(lambda: find_manifests(config))
    for manifest in manifests.values():
        require_rankable(config, manifest)
    known = _check_people(config, evaluated, manifests)
    identity = _identity(config, evaluated, manifests)
    return _Subject(evaluated, manifests, known, identity, config.eval_dir / identity["run"])


def _earlier(config: ExperimentConfig, subject: _Subject, overwrite: bool, reuse: bool) -> Evaluation | None:
    """Return the very same evaluation where it is there and may be used again; refuse another in its place."""
    path = subject.folder / METRICS_FILE
    if overwrite or not path.exists() or (before := _undamaged_metrics(subject.folder)) is None:
        return None
    _refuse_other_evaluation(path, before, subject.identity)
    if not reuse:
        return None
    if found := _faults(subject.folder, subject.manifests):
        logger.warning(f"{'; '.join(found)}, so it is evaluated again.")
        return None
    # Not part of its identity, as no number depends on it; but what it keeps of people does.
    explained = read_yaml(subject.folder / CONFIG).get("explained_images")
    if explained != config.explained_images:
        logger.info(
            f"{subject.folder} was made with explained_images: {explained}, not {config.explained_images}, so it is "
            "evaluated again."
        )
        return None
    return Evaluation(subject.identity["run"], subject.folder, before, was_there=True)


def _evaluate(config: ExperimentConfig, *, overwrite: bool, reuse: bool) -> Evaluation:
    """Evaluate in this process, or in all that share the work: each embeds its part, and the first does the rest."""
    start = time.perf_counter()
    device = own_device(config.device)
    subject = _subject(config)
    manifests = subject.manifests
    with ExitStack() as work:
        on_first(lambda: work.enter_context(holding(subject.folder)))
        on_first(lambda: remove_abandoned(subject.folder))
        if earlier := on_first(lambda: _earlier(config, subject, overwrite, reuse)):
            return earlier
        run, weights = subject.identity["run"], subject.identity["weights_sha256"]
        origin = run_facts(run, "evaluation", config.to_dict(), manifests, config.seed, weights)
        replaces = (subject.folder / METRICS_FILE).exists()
        own = work.enter_context(session(subject.folder, origin, device=device, precision="float32", replaces=replaces))
        return _measure(config, subject, device, start, own, origin)


def _measure(
    config: ExperimentConfig,
    subject: _Subject,
    device: torch.device,
    start: float,
    own: Session,
    origin: Mapping[str, Any],
) -> Evaluation:
    evaluated, manifests = subject.evaluated, subject.manifests
    facts = evaluated.facts()
    used = {aspect: images_of_draws(config, manifest) for aspect, manifest in manifests.items()}
    cache = open_pixel_cache(config.pixel_cache_gib)
    sharing = f" by {current().size} processes" if current().size > 1 else ""
    logger.info(f"Evaluating on {device} in float32{sharing}; pixel cache: {cache or 'none'}")
    embedding_start = time.perf_counter()
    with progress_over(f"embedding images of {subject.identity['run']}") as report:
        features = embed_images(config, manifests, used, evaluated.model.to(device), device, cache, report)
    embedding_seconds = time.perf_counter() - embedding_start
    rankings: dict[str, Rankings] = {}
    on_first(lambda: rankings.update({a: rank_draws(config, manifest, features) for a, manifest in manifests.items()}))
    seconds = time.perf_counter() - start
    used = {aspect: validation_images(manifest) for aspect, manifest in manifests.items()}
    with progress_over("embedding validation images") as report:
        validation = embed_images(config, manifests, used, evaluated.model, device, cache, report)
    images_per_second = len(features.images) * len(features.by_flip) / embedding_seconds
    speed = evaluation_cost(seconds, images_per_second, device)

    def write() -> Evaluation:
        last = [METRICS_FILE, CHECKSUMS]
        with replacing_together(subject.folder, last, then=lambda: own.note(**origin)) as folder:
            metrics = _write(config, subject, folder, facts, rankings, features, validation, device, seconds, speed)
            own.write_successor(folder, **origin)
        return Evaluation(subject.identity["run"], subject.folder, metrics)

    return on_first(write)


def _write(
    config: ExperimentConfig,
    subject: _Subject,
    folder: Path,
    facts: dict[str, Any],
    rankings: dict[str, Rankings],
    features: FeatureTable,
    validation: FeatureTable,
    device: torch.device,
    seconds: float,
    speed: dict[str, Any],
) -> dict[str, Any]:
    """Write what was measured, and what a report needs besides, to a folder; return the metrics."""
    evaluated, manifests, identity = subject.evaluated, subject.manifests, subject.identity
    trained = evaluated.checkpoint
    places = (config.output_dir, Path(evaluated.experiment["output_dir"]))
    metrics: dict[str, Any] = {
        **identity,
        "checkpoint": str(evaluated.path) if evaluated.path else None,
        **facts,
        "distinct_images": len(features.images),
        "missing_images": sum(manifest.missing_images for manifest in manifests.values()),
        "unreadable_images": sum(manifest.unreadable_images for manifest in manifests.values()),
        "test_people_known_from_other_aspects": sum(subject.known.values()),
        "seconds": round(seconds, 2),
        "results": summarise(rankings, identity["rerank"]),
    }
    if len(rankings) > 1:
        metrics["per_aspect"] = {
            aspect: {
                "manifest_sha256": manifests[aspect].sha256,
                "results": summarise({aspect: ranking}, identity["rerank"]),
            }
            for aspect, ranking in rankings.items()
        }
    cost = {"evaluation": speed, "training": training_cost(trained, places) if trained is not None else None}
    _keep_records(config, subject, folder, features, validation, device)
    write_text(folder / PER_SPLIT, per_split_csv(rankings))
    write_text(folder / PER_QUERY, per_query_csv(rankings, manifests))
    write_json(folder / COST, cost)
    write_json(folder / METRICS_FILE, metrics)
    write_checksums(folder, _files(manifests))
    return metrics


def read_evaluation(folder: Path) -> Evaluation:
    """Return an evaluation from what it has written.

    Raises:
        HandCLIPError: its metrics are missing or damaged.
    """
    require_intact(folder, [METRICS_FILE], advice=AGAIN)
    metrics = read_json(folder / METRICS_FILE)
    return Evaluation(metrics["run"], folder, metrics)


def evaluation_folder(config: ExperimentConfig) -> Path:
    """Return where an experiment's model is evaluated on the data that it was trained on."""
    return config.eval_dir / evaluation_name(run_name(config), rerank=config.rerank)


def require_no_evaluation(config: ExperimentConfig) -> None:
    """Check that an experiment about to be trained has not been evaluated, before hours are spent on it.

    Raises:
        HandCLIPError: names the evaluation that is in the way.
    """
    metrics = evaluation_folder(config) / METRICS_FILE
    if metrics.exists():
        raise HandCLIPError(f"{metrics} holds an earlier evaluation of a run of this name; move {metrics.parent} away")


def _keep_records(
    config: ExperimentConfig,
    subject: _Subject,
    folder: Path,
    features: FeatureTable,
    validation: FeatureTable,
    device: torch.device,
) -> None:
    """Write what a report needs besides the metrics."""
    by_flip = {flip: np.concatenate([rows, validation.by_flip[flip]]) for flip, rows in features.by_flip.items()}
    write_features(folder, KeptFeatures([*features.sha256, *validation.sha256], by_flip))
    for aspect, manifest in subject.manifests.items():
        manifest.save(manifest_file(folder, aspect), place=manifest_file(subject.folder, aspect))
    write_attributes(folder, attributes_of(subject.manifests))
    write_explanations(folder, _explain(config, subject.evaluated, subject.manifests, device))
    write_config(folder / CONFIG, config)
    environment = {**describe_environment(device, "float32"), "processes": current().size}
    write_json(folder / ENVIRONMENT, environment)


def _explain(
    config: ExperimentConfig, evaluated: EvaluatedModel, manifests: Mapping[str, Manifest], device: torch.device
) -> list[Explanation]:
    photographs = []
    for aspect, index in hands_to_explain(manifests, config.explained_images):
        image = manifests[aspect].images[index]
        photographs.append((image.path, aspect, read_image(manifests[aspect].path_of(index), image.sha256)))
    try:
        return explain_photographs(evaluated.model, device, photographs)
    except HandCLIPError as error:
        logger.warning(f"Where the model looks is not kept: {error}")
        return []


def _files(aspects: Iterable[str]) -> list[str]:
    """Return the files that an evaluation writes, but for what is added later and for its provenance."""
    kept = [FEATURES, ATTRIBUTES, EXPLANATIONS, *(manifest_file(Path(), aspect).name for aspect in aspects)]
    return [*kept, CONFIG, ENVIRONMENT, PER_SPLIT, PER_QUERY, COST, METRICS_FILE]


def _undamaged_metrics(folder: Path) -> dict[str, Any] | None:
    """Return the metrics of an earlier evaluation, None where they are damaged and so cannot say whose they are."""
    path = folder / METRICS_FILE
    try:
        # Of what is wrong with the list `_faults` tells.
        if found := [fault for fault in faults(folder, [METRICS_FILE]) if fault.startswith(f"{path}:")]:
            raise DamagedFileError(found[0])
        metrics = read_json(path)
        if not isinstance(metrics, dict):
            raise DamagedFileError(f"{path}: is damaged or is not of an evaluation")
        return metrics
    except HandCLIPError as error:
        logger.warning(f"{error}, so it is evaluated again.")
        return None


def _faults(folder: Path, aspects: Iterable[str]) -> list[str]:
    """Return why an evaluation cannot be used again; nothing where all of it is there and as it was written."""
    names = _files(aspects)
    if lacking := [name for name in (*names, CHECKSUMS) if not (folder / name).is_file()]:
        return [f"{folder} lacks {', '.join(lacking)}"]
    return faults(folder, names, all_listed=True)


def _check_people(
    config: ExperimentConfig, evaluated: EvaluatedModel, manifests: Mapping[str, Manifest]
) -> dict[str, int]:
    """Refuse a model that was trained on test images; return how many test people it knows from other aspects."""
    identities: list[str] = []
    if evaluated.checkpoint is not None:
        _warn_of_unfinished_training(config)
        check_not_tested_on(evaluated.checkpoint.training_images, manifests, str(evaluated.path))
        if evaluated.experiment["dataset"] == config.dataset:  # the same number is another person elsewhere
            identities = evaluated.checkpoint.identities
    known = people_known_from_other_aspects(identities, manifests)
    if any(known.values()):
        logger.info(
            "Test people whose other hand or side was trained on: "
            + ", ".join(f"{aspect} {count}" for aspect, count in known.items() if count)
        )
    return known


def _warn_of_unfinished_training(config: ExperimentConfig) -> None:
    files = RunFolder.of(config)
    if config.checkpoint is None and files.folder.is_dir() and not files.result.is_file():
        logger.warning(f"Training of this run has not ended: what is evaluated is the best so far. See {files.folder}/")


def _identity(config: ExperimentConfig, evaluated: EvaluatedModel, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """Return what makes two evaluations the same one; where the weights lie is not part of it."""
    data = {"dataset": config.dataset, "aspect": config.aspect, "manifest_sha256": combined_sha256(manifests)}
    trained_on = evaluated.trained_on
    cross_domain = trained_on is not None and trained_on != data
    run, on = run_name(config), ""
    if evaluated.checkpoint is not None and (cross_domain or config.checkpoint is not None):
        run = evaluated.checkpoint.run
    if trained_on is not None and cross_domain:
        on = f"{config.dataset}_{config.aspect}"
        if config.manifest is not None or config.dataset == "folder":
            on += f"_{data['manifest_sha256'][:8]}"
        logger.info(
            f"Evaluating {run}, trained on {trained_on['dataset']} {trained_on['aspect']}, "
            f"on {config.dataset} {config.aspect}"
        )
    return {
        "run": evaluation_name(run, on=on, rerank=config.rerank),
        "dataset": config.dataset,
        "aspect": config.aspect,
        "model": config.model,
        "weights_sha256": evaluated.weights_sha256(),
        "manifest_sha256": data["manifest_sha256"],
        "trained_on": trained_on,
        "cross_domain": cross_domain,
        "settings": {
            "num_splits": config.num_splits,
            "gallery_protocols": list(config.gallery_protocols),
            "flip_settings": list(config.flip_settings),
            "test_feature": evaluated.model.test_feature,
        },
        "rerank": config.to_dict()["rerank"],
    }


def _refuse_other_evaluation(path: Path, before: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    for key, value in identity.items():
        old = before.get(key)
        if old != value:
            if isinstance(old, dict) and isinstance(value, dict):
                differing = [name for name in value if old.get(name) != value[name]]
                if differing:
                    key, old, value = differing[0], old.get(differing[0]), value[differing[0]]
            raise HandCLIPError(
                f"{path} holds an evaluation with {key}: {old}, not {value}. "
                "Add --overwrite to replace it, or choose another eval_dir"
            )
