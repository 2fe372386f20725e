"""Evaluating a model, as a run on disk: locks, provenance and files around `retrieval.evaluation`, which computes."""

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handclip.checksums import require_intact, write_checksums
from handclip.config.experiment import ExperimentConfig
from handclip.config.naming import evaluation_name, run_name
from handclip.console import progress_over, telling
from handclip.datasets.hands11k import attributes_of
from handclip.datasets.pixel_cache import open_pixel_cache
from handclip.errors import HandCLIPError
from handclip.file_names import CHECKSUMS, CONFIG, COST, ENVIRONMENT, METRICS_FILE, PER_QUERY, PER_SPLIT
from handclip.files import (
    read_json_object,
    remove_abandoned,
    replacing_together,
    require_replaceable,
    require_writable,
    write_json,
    write_text,
)
from handclip.locks import holding, refuse_if_held
from handclip.parallel.hardware import choose_workers, describe_environment, own_device
from handclip.parallel.launching import launched, on_devices, starts_processes
from handclip.parallel.processes import current, on_first
from handclip.retrieval.evaluation import Retrieval, retrieve
from handclip.retrieval.features import Embedder, embed_images, validation_images
from handclip.retrieval.summary import per_query_csv, per_split_csv
from handclip.runs.artifacts import (
    AGAIN,
    KeptFeatures,
    manifest_file,
    write_attributes,
    write_explanations,
    write_features,
)
from handclip.runs.cost import evaluation_cost, training_cost
from handclip.runs.data import images_left_out
from handclip.runs.earlier_evaluation import earlier_metrics, evaluation_files
from handclip.runs.evaluation_spec import EvaluationSpec, find_evaluation_spec
from handclip.runs.explanations import explain_hands
from handclip.runs.provenance import run_facts, session
from handclip.runs.run_folder import write_config

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


@telling()
def evaluate(config: ExperimentConfig, *, overwrite: bool = False, reuse: bool = False) -> Evaluation:
    """Evaluate a baseline or a trained model and write `eval_logs/<run>/`.

    `metrics.json` holds what was measured, `per_split.csv` each draw, `per_query.csv` the rank of the right identity
    and both APs for each query; `cost.json` what it cost on this machine, `config.yml` and `environment.json` how it
    was made; the others, see `runs.artifacts`, are what reports are made from. `SHA256SUMS` holds the checksums of
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
        if reuse and (earlier := _earlier(find_evaluation_spec(config), overwrite, reuse)):
            return earlier
        raise
    # Where a checkpoint is named, what it says decides the folder; launched, it may be held by this very evaluation.
    if config.checkpoint is None and launched() is None:
        refuse_if_held(folder)
    if reuse and starts_processes(config) and (earlier := _earlier(find_evaluation_spec(config), overwrite, reuse)):
        return earlier
    return on_devices(_evaluate, config, overwrite=overwrite, reuse=reuse)


def _earlier(spec: EvaluationSpec, overwrite: bool, reuse: bool) -> Evaluation | None:
    """Return the very same evaluation where it is there and may be used again; refuse another in its place."""
    metrics = None if overwrite else earlier_metrics(spec, reuse=reuse)
    return None if metrics is None else Evaluation(spec.run, spec.folder, metrics, was_there=True)


def _evaluate(config: ExperimentConfig, *, overwrite: bool, reuse: bool) -> Evaluation:
    """Evaluate in this process, or in all that share the work: each embeds its part, and the first does the rest."""
    start = time.perf_counter()
    device = own_device(config.device)
    environment = describe_environment(device, "float32")
    spec = find_evaluation_spec(config)
    with ExitStack() as work:
        on_first(lambda: work.enter_context(holding(spec.folder)))
        on_first(lambda: remove_abandoned(spec.folder))
        if earlier := on_first(lambda: _earlier(spec, overwrite, reuse)):
            return earlier
        on_first(lambda: _require_replaceable(spec))
        weights = spec.identity["weights_sha256"]
        origin = run_facts(spec.run, "evaluation", config.to_dict(), spec.manifests, config.seed, weights)
        replaces = (spec.folder / METRICS_FILE).exists()
        own = work.enter_context(session(spec.folder, origin, environment, replaces=replaces))

        facts = spec.evaluated.facts()
        model, cache = spec.evaluated.model.to(device), open_pixel_cache(config.pixel_cache_gib)
        embedder = Embedder(model, device, config.eval_batch_size, choose_workers(config.num_workers), cache)
        sharing = f" by {current().size} processes" if current().size > 1 else ""
        logger.info(f"Evaluating on {device} in float32{sharing}; pixel cache: {cache or 'none'}")
        with progress_over(f"embedding images of {spec.run}") as progress:
            found = retrieve(config, spec.manifests, embedder, progress)
        seconds = time.perf_counter() - start
        pairs = {aspect: validation_images(manifest) for aspect, manifest in spec.manifests.items()}
        with progress_over("embedding validation images") as progress:
            validation = embed_images(embedder, spec.manifests, pairs, config.flip_settings, progress)

        def write() -> Evaluation:
            metrics = _metrics(spec, facts, found, seconds)
            cost = {
                "evaluation": evaluation_cost(seconds, found.images_per_second, environment),
                "training": training_cost(spec.evaluated.checkpoint, spec.training_folders),
            }
            explanations = explain_hands(model, device, spec.manifests, config.explained_images)
            last = [METRICS_FILE, CHECKSUMS]
            with replacing_together(spec.folder, last, then=lambda: own.note(**origin)) as folder:
                write_features(folder, KeptFeatures.of_tables(found.features, validation))
                for aspect, manifest in spec.manifests.items():
                    manifest.save(manifest_file(folder, aspect), place=manifest_file(spec.folder, aspect))
                write_attributes(folder, attributes_of(spec.manifests))
                write_explanations(folder, explanations)
                write_config(folder / CONFIG, config)
                write_json(folder / ENVIRONMENT, environment)
                write_text(folder / PER_SPLIT, per_split_csv(found.rankings))
                write_text(folder / PER_QUERY, per_query_csv(found.rankings, spec.manifests))
                write_json(folder / COST, cost)
                write_json(folder / METRICS_FILE, metrics)
                write_checksums(folder, evaluation_files(spec.manifests))
                own.write_successor(folder, **origin)
            return Evaluation(spec.run, spec.folder, metrics)

        return on_first(write)


def _require_replaceable(spec: EvaluationSpec) -> None:
    """Check that the files can be written, before hours are spent on what goes into them."""
    for name in [*evaluation_files(spec.manifests), CHECKSUMS]:
        require_replaceable(spec.folder / name)


def _metrics(spec: EvaluationSpec, facts: dict[str, Any], found: Retrieval, seconds: float) -> dict[str, Any]:
    """Return the content of `metrics.json`."""
    return {
        **spec.identity,
        "checkpoint": str(spec.evaluated.path) if spec.evaluated.path else None,
        **facts,
        "training_ended": spec.training_ended,
        "distinct_images": len(found.features.images),
        **images_left_out(spec.manifests),
        "test_people_known_from_other_aspects": sum(spec.known.values()),
        "seconds": round(seconds, 2),
        **found.results(spec.manifests, spec.identity["rerank"]),
    }


def read_evaluation(folder: Path) -> Evaluation:
    """Return an evaluation from what it has written.

    Raises:
        HandCLIPError: its metrics are missing or damaged.
    """
    require_intact(folder, [METRICS_FILE], advice=AGAIN)
    metrics = read_json_object(folder / METRICS_FILE)
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
