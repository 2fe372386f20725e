"""Whether an evaluation's numbers still follow from its features, its manifests and its model."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

from handclip.audit.findings import Finding, Outcome, compared, guarded
from handclip.audit.folder import check_folder, kept_manifests, read_config
from handclip.audit.images import ImageChecker, audit_manifest
from handclip.audit.model import check_model
from handclip.config.experiment import DataConfig, ExperimentConfig
from handclip.csv_files import csv_rows
from handclip.datasets.manifest import Manifest
from handclip.errors import HandCLIPError
from handclip.file_names import FEATURES, METRICS_FILE, PER_QUERY, PER_SPLIT, PROVENANCE
from handclip.files import opened_text, read_json_object
from handclip.retrieval.features import FeatureTable, images_of_draws, listed_path
from handclip.retrieval.ranking import rank_draws
from handclip.retrieval.summary import per_query_csv, per_split_csv, summarise
from handclip.runs.artifacts import KeptFeatures, manifest_file, read_features
from handclip.runs.data import combined_sha256, images_left_out
from handclip.runs.earlier_evaluation import evaluation_files
from handclip.runs.provenance import read_provenance

_TABLES = (PER_SPLIT, PER_QUERY)


def audit_evaluation(folder: Path, images: ImageChecker) -> Iterator[Finding]:
    """Yield what is found of an evaluation."""
    complete = (folder / METRICS_FILE).exists()
    yield from check_folder(folder, _listed(folder), complete=complete)
    if complete:
        yield from guarded(METRICS_FILE, _check_metrics, folder, images)
    else:
        yield Finding(METRICS_FILE, Outcome.GONE, "not there: the evaluation was not finished; evaluate the run again")


def _check_metrics(folder: Path, images: ImageChecker) -> Iterator[Finding]:
    metrics, config = read_json_object(folder / METRICS_FILE), read_config(folder)
    for aspect in config.aspects:
        yield from audit_manifest(manifest_file(folder, aspect), images)
    for what, check in (("manifests", _check_manifests), ("model", check_model), ("numbers", _check_numbers)):
        yield from guarded(what, check, folder, config, metrics)


def _listed(folder: Path) -> list[str]:
    """Return the files that must have checksums; where the config is damaged, all but the manifests."""
    try:
        return evaluation_files(read_config(folder).aspects)
    except HandCLIPError:
        return evaluation_files(())


def _check_manifests(folder: Path, config: DataConfig, metrics: Mapping[str, Any]) -> Iterator[Finding]:
    manifests = kept_manifests(folder, config)
    own, of_each = combined_sha256(manifests), {aspect: manifest.sha256 for aspect, manifest in manifests.items()}
    beside = f"the manifests beside it, {own[:12]}"
    of_parts = {aspect: part["manifest_sha256"] for aspect, part in metrics.get("per_aspect", {}).items()}
    recorded = {"manifest_sha256": metrics["manifest_sha256"], **of_parts}
    computed = {"manifest_sha256": own, **{aspect: of_each[aspect] for aspect in of_parts.keys() & of_each}}
    yield compared(f"{METRICS_FILE}: manifest_sha256", recorded, computed, beside)
    aspects = {"parts": sorted(manifests) if len(manifests) > 1 else []}
    yield compared(f"{METRICS_FILE}: per_aspect", {"parts": sorted(of_parts)}, aspects, ", ".join(manifests))
    yield compared(f"{METRICS_FILE}: images left out", metrics, images_left_out(manifests), beside)
    if provenance := read_provenance(folder):
        yield compared(f"{PROVENANCE}: manifest_sha256", provenance["manifest_sha256"], of_each, beside)


def _check_numbers(folder: Path, config: ExperimentConfig, metrics: Mapping[str, Any]) -> Iterator[Finding]:
    """Rank all draws again, from the features that the evaluation has kept."""
    # Where SHA256SUMS is damaged or was made by another program, that was said, and must not hide an edited number.
    try:
        manifests, kept = kept_manifests(folder, config), read_features(folder, listed=False)
        features = _feature_table(config, manifests, kept)
    except HandCLIPError as error:
        yield Finding("numbers", Outcome.DIFFERS, str(error))
        for name in (METRICS_FILE, *_TABLES):
            yield Finding(f"{name}: numbers", Outcome.NOT_CHECKED, "what they follow from cannot be read")
        return
    rankings = {aspect: rank_draws(config, manifest, features) for aspect, manifest in manifests.items()}
    rerank = config.to_dict()["rerank"]
    yield from _compare_results(METRICS_FILE, metrics["results"], summarise(rankings, manifests, rerank))
    parts = metrics.get("per_aspect", {})
    for aspect in [aspect for aspect in rankings if aspect in parts]:
        what = f"{METRICS_FILE}: per_aspect.{aspect}"
        part = summarise({aspect: rankings[aspect]}, manifests, rerank)
        yield from _compare_results(what, parts[aspect]["results"], part)
    computed = {"distinct_images": len(features.images)}
    yield compared(f"{METRICS_FILE}: distinct_images", metrics, computed, f"{len(features.images):,} features")
    for name, text in zip(_TABLES, (per_split_csv(rankings), per_query_csv(rankings, manifests)), strict=True):
        yield from guarded(name, _compare_table, folder / name, text)


def _feature_table(config: ExperimentConfig, manifests: Mapping[str, Manifest], kept: KeptFeatures) -> FeatureTable:
    """Return the features of the draws' images as the evaluation had them."""
    wanted = {
        listed_path(manifest, index): manifest.images[index].sha256
        for manifest in manifests.values()
        for index in images_of_draws(config, manifest)
    }
    paths = sorted(wanted, key=str)
    # They come first, in this order, and what follows are validation images.
    if list(kept.sha256[: len(paths)]) != [wanted[path] for path in paths]:
        raise HandCLIPError(
            f"{FEATURES}: is not of the images that the manifests beside it list for these draws; one was replaced"
        )
    return FeatureTable({path: row for row, path in enumerate(paths)}, list(kept.sha256), dict(kept.by_flip))


def _compare_results(what: str, recorded: list[dict[str, Any]], computed: list[dict[str, Any]]) -> Iterator[Finding]:
    if len(recorded) != len(computed):
        yield Finding(what, Outcome.DIFFERS, f"{len(recorded)} results are recorded, recomputed {len(computed)}")
    for old, new in zip(recorded, computed, strict=False):
        setting = f"{what}: {new['gallery_protocol']}, flip {new['flip']}"
        found = f"all numbers of {new['num_splits']} draws, recomputed from {FEATURES}"
        yield compared(setting, old, new, found)


def _compare_table(path: Path, text: str) -> Iterator[Finding]:
    """Compare a CSV file with what it should hold, number by number."""
    computed = _table(StringIO(text, newline=""))
    with opened_text(path) as file:
        recorded = _table(file)
    yield compared(path.name, recorded, computed, f"{computed['rows']:,} rows, recomputed from {FEATURES}")


def _table(file: Iterable[str]) -> dict[str, Any]:
    """Return the number of rows, and each row by its line."""
    header, *rows = csv_rows(file)
    lines = {f"line {line}": dict(zip(header, map(_value, row), strict=True)) for line, row in enumerate(rows, start=2)}
    return {"rows": len(rows), **lines}


def _value(cell: str) -> float | str:
    """Return a number as such, but not a name such as 0001101."""
    for kind in (int, float):
        with suppress(ValueError):
            if str(kind(cell)) == cell:
                return kind(cell)
    return cell
