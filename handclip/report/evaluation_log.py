"""One evaluation as text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handclip.datasets.duplicates import name_of_gallery
from handclip.file_names import EVALUATION_LOG
from handclip.files import opened, write_text

METRIC_TITLES = {
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "map": "mAP",
    "map_trapezoid": "mAP trapezoid",
}
_FLIP_TITLES = {"none": "none", "sum": "image + mirrored image"}


def write_evaluation_log(folder: Path, metrics: Mapping[str, Any], facts: Mapping[str, str] | None = None) -> Path:
    """Write `eval.log`, one evaluation as text, into the folder of the evaluation; return its path."""
    path = folder / EVALUATION_LOG
    write_text(path, evaluation_text(metrics, facts))
    return path


def is_logged(folder: Path, metrics: Mapping[str, Any]) -> bool:
    """Whether the `eval.log` in the folder of an evaluation is of these metrics, whichever config it names."""
    try:
        with opened(folder / EVALUATION_LOG) as file:
            lines = file.read().decode("utf-8").splitlines()
    except (OSError, ValueError):
        return False
    return [line for line in lines if not line.startswith("Config:")] == evaluation_text(metrics).splitlines()


def evaluation_text(metrics: Mapping[str, Any], facts: Mapping[str, str] | None = None) -> str:
    """Return one evaluation as text: a block of facts, then for each setting a line per draw and the averages.

    Args:
        metrics: the content of `metrics.json`.
        facts: what else to say about the run, such as the config's path.
    """
    known = {
        "Experiment run": metrics["run"],
        **(facts or {}),
        "Experiment": metrics["experiment"],
        "Variant": metrics["variant"],
        "Model": metrics["model"],
        "Dataset": metrics["dataset"],
        "Aspect": metrics["aspect"],
        "Checkpoint": metrics["checkpoint"] or "none (baseline)",
        "Manifest sha256": metrics["manifest_sha256"],
        "Distinct images": f"{metrics['distinct_images']:,}",
        "Seconds": f"{metrics['seconds']:.1f}",
    }
    if metrics["training_ended"] is False:
        known["Training"] = f"had not ended; this is the best model until then, of epoch {metrics['trained_epochs']}"
    if metrics["cross_domain"]:
        trained_on = metrics["trained_on"]
        known["Cross-domain"] = (
            f"trained on {trained_on['dataset']} {trained_on['aspect']} (manifest {trained_on['manifest_sha256'][:12]})"
            f", evaluated on {metrics['dataset']} {metrics['aspect']}"
        )
    reranked = ""
    if metrics["rerank"] is not None:
        known["Re-ranking"] = "k-reciprocal, " + ", ".join(
            f"{key} {value:g}" for key, value in metrics["rerank"].items()
        )
        reranked = f"; re-ranked ({known['Re-ranking']})"
    lines = [f"{name + ':':<18}{value}" for name, value in known.items()]
    for entry in metrics["results"]:
        flip = _FLIP_TITLES[entry["flip"]]
        lines += ["", f"Gallery protocol: {entry['gallery_protocol']}; flip: {flip}; AP: plain and trapezoid{reranked}"]
        counts = entry["matched_queries"]
        for number, (split, queries) in enumerate(zip(entry["splits"], counts, strict=True), start=1):
            lines.append(f"  Split {number:>2}/{entry['num_splits']}: {_metric_line(split)}  of {queries:,} queries")
        lines.append(f"  Average:     {_metric_line(entry['mean'])}")
        lines.append(f"  Std:         {_metric_line(entry['std'])}")
        if entry["unmatched_queries"]:
            lines.append(f"  Left out: {entry['unmatched_queries']} queries without a relevant gallery image")
        if tied := entry["tied_queries"]:
            lines.append(
                f"  Ties: in {tied:,} of {sum(counts):,} queries a wrong image scores the same as the best right one "
                "and counts as ranked before it"
            )
        if copied := entry["copied_queries"]:
            queries = sum(counts) + entry["unmatched_queries"]
            place = name_of_gallery(entry["gallery_protocol"])
            lines.append(
                f"  Copies: in {copied:,} of {queries:,} queries {place} holds the very same photograph, whose rank "
                "says nothing of the model"
            )
    lines += ["", f"Averages{reranked}"]
    for entry in metrics["results"]:
        setting = f"{entry['gallery_protocol']:<12}flip {entry['flip']:<5}"
        numbers = " or ".join(f"{count:,}" for count in sorted(set(entry["matched_queries"])))
        lines.append(f"  {setting} {_metric_line(entry['mean'])}  of {numbers} queries each")
    return "\n".join(lines) + "\n"


def _metric_line(values: Mapping[str, float]) -> str:
    return "  ".join(f"{title} {100 * values[name]:6.2f} %" for name, title in METRIC_TITLES.items())
