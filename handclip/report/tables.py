"""Results as text: one evaluation in full, and several runs side by side."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from handclip.files import write_text

METRIC_TITLES = {
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "map": "mAP",
    "map_trapezoid": "mAP trapezoid",
}
_FLIP_TITLES = {"none": "none", "sum": "image + mirrored image"}


@dataclass(frozen=True)
class ComparisonRow:
    """One run in a comparison; metrics are fractions, None where nothing was trained."""

    stage: str
    losses: str
    run: str
    mean: Mapping[str, float]
    std: Mapping[str, float]
    best_epoch: int | None = None
    training_seconds: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs under one protocol, which stands beside the numbers."""

    protocol: str
    rows: Sequence[ComparisonRow] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a file that a program reads."""
        return {"protocol": self.protocol, "rows": [asdict(row) for row in self.rows]}

    def to_rich(self) -> Table:
        """Return the table for the screen."""
        table = Table(title=self.protocol, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
        # A narrow terminal may fold a cell, but never cut it off.
        table.add_column("Stage", overflow="fold")
        table.add_column("Losses", overflow="fold")
        for title in (*METRIC_TITLES.values(), "Training s", "Images/s"):
            table.add_column(title, justify="right", overflow="fold")
        best = {name: max(row.mean[name] for row in self.rows) for name in METRIC_TITLES}
        for row in self.rows:
            cells = [
                f"[bold]{text}[/bold]" if row.mean[name] == best[name] else text
                for name, text in zip(METRIC_TITLES, _metric_cells(row), strict=True)
            ]
            table.add_row(row.stage, row.losses, *cells, *_speed_cells(row))
        return table

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        titles = ["Stage", "Losses", *METRIC_TITLES.values(), "Training s", "Images/s"]
        lines = [titles, ["---", "---", *["---:"] * (len(titles) - 2)]]
        lines += [[row.stage, row.losses, *_metric_cells(row), *_speed_cells(row)] for row in self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{self.protocol}\n\n{body}\n"

    def to_csv(self) -> str:
        """Return the table as CSV, with fractions."""
        text = io.StringIO()
        writer = csv.writer(text)
        columns = [f"{name}_{kind}" for name in METRIC_TITLES for kind in ("mean", "std")]
        writer.writerow(["stage", "losses", "run", *columns, "best_epoch", "training_seconds", "images_per_second"])
        for row in self.rows:
            values = [part[name] for name in METRIC_TITLES for part in (row.mean, row.std)]
            speed = [row.best_epoch, row.training_seconds, row.images_per_second]
            writer.writerow([row.stage, row.losses, row.run, *values, *("" if v is None else v for v in speed)])
        return text.getvalue()


def protocol_line(metrics: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Return the choices without which a number means nothing."""
    galleries = ", ".join(str(count) for count in dict.fromkeys(entry["gallery_images"]))
    averaged = " (mean of the four aspects)" if "per_aspect" in metrics else ""
    return (
        f"{metrics['dataset']} {metrics['aspect']}{averaged}; gallery protocol: {entry['gallery_protocol']} "
        f"({galleries} images); flip: {entry['flip']}; {entry['num_splits']} draws, mean ± std; "
        f"manifest {metrics['manifest_sha256'][:12]}"
    )


def write_evaluation_log(folder: Path, metrics: Mapping[str, Any], facts: Mapping[str, str]) -> Path:
    """Write `eval.log`, one evaluation as text, into the folder of the evaluation; return its path."""
    path = folder / "eval.log"
    write_text(path, evaluation_text(metrics, facts))
    return path


def evaluation_text(metrics: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    """Return one evaluation as text: a block of facts, then for each setting a line per draw and the averages.

    Args:
        metrics: the content of `metrics.json`.
        facts: what else to say about the run, such as the config's path.
    """
    known = {
        "Experiment run": metrics["run"],
        **facts,
        "Model": metrics["model"],
        "Dataset": metrics["dataset"],
        "Aspect": metrics["aspect"],
        "Checkpoint": metrics["checkpoint"] or "none (baseline)",
        "Manifest sha256": metrics["manifest_sha256"],
        "Distinct images": f"{metrics['distinct_images']:,}",
        "Seconds": f"{metrics['seconds']:.1f}",
    }
    lines = [f"{name + ':':<18}{value}" for name, value in known.items()]
    for entry in metrics["results"]:
        flip = _FLIP_TITLES[entry["flip"]]
        lines += ["", f"Gallery protocol: {entry['gallery_protocol']}; flip: {flip}; AP: plain and trapezoid"]
        for number, split in enumerate(entry["splits"], start=1):
            lines.append(f"  Split {number:>2}/{entry['num_splits']}: {_metric_line(split)}")
        lines.append(f"  Average:     {_metric_line(entry['mean'])}")
        lines.append(f"  Std:         {_metric_line(entry['std'])}")
        if entry["unmatched_queries"]:
            lines.append(f"  Left out: {entry['unmatched_queries']} queries without a relevant gallery image")
    lines += ["", "Averages"]
    for entry in metrics["results"]:
        lines.append(f"  {entry['gallery_protocol']:<12}flip {entry['flip']:<5} {_metric_line(entry['mean'])}")
    return "\n".join(lines) + "\n"


def _metric_line(values: Mapping[str, float]) -> str:
    return "  ".join(f"{title} {100 * values[name]:6.2f} %" for name, title in METRIC_TITLES.items())


def _metric_cells(row: ComparisonRow) -> list[str]:
    return [f"{100 * row.mean[name]:.1f} ± {100 * row.std[name]:.1f}" for name in METRIC_TITLES]


def _speed_cells(row: ComparisonRow) -> list[str]:
    if row.training_seconds is None or row.images_per_second is None:
        return ["-", "-"]
    return [f"{row.training_seconds:,.0f}", f"{row.images_per_second:,.0f}"]
