"""One evaluation as text."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

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
    rerank = metrics["rerank"] or {}
    reranking = ", ".join(["k-reciprocal", *(f"{key} {value:g}" for key, value in rerank.items())])
    return _template().render(**metrics, facts=facts or {}, reranking=reranking if rerank else "", reranked="")


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.globals["name_of_gallery"] = name_of_gallery
    environment.filters |= {"thousands": "{:,}".format, "metrics": _metric_line}
    source = files("handclip.report").joinpath("page", "evaluation.log.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def _metric_line(values: Mapping[str, float]) -> str:
    return "  ".join(f"{title} {100 * values[name]:6.2f} %" for name, title in METRIC_TITLES.items())
