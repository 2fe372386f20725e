"""How training went: losses, validation, learning rates and speed by epoch, and what each run scores in the end."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from handclip.report.evaluation_log import METRIC_TITLES
from handclip.report.figures.style import MOST_SERIES
from handclip.report.figures.training import EpochCurve, EpochPanel, ScoreBar, epochs_figure, scores_figure
from handclip.report.matrix import METRICS, TESTED
from handclip.report.prose import percent
from handclip.report.report_data import ReportData, ReportRun
from handclip.report.report_writer import ReportWriter, Section, SectionWriter
from handclip.report.table import Column

_RATE_TITLES = {"encoder": "encoder", "new": "new layers"}
_LOGARITHMIC_FROM = 10
"""Values that differ by this factor cannot all be read on a linear axis."""

Row = Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class _Training:
    """One training run: what was recorded of each epoch."""

    run: ReportRun
    history: Sequence[Row]
    style: int

    @property
    def validated(self) -> bool:
        return self.has("val_rank1")

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights were kept; None where nothing tells it from the others."""
        epoch = (self.run.training_result or {}).get("best_epoch")
        return int(epoch) if epoch is not None and self.validated else None

    @property
    def epochs(self) -> list[float]:
        numbers = (row.get("epoch") for row in self.history)
        return [place if number is None else number for place, number in enumerate(numbers, start=1)]

    def has(self, key: str) -> bool:
        return any(row.get(key) is not None for row in self.history)

    def at_best(self, key: str) -> float | None:
        rows = zip(self.history, self.epochs, strict=True)
        return next((row.get(key) for row, epoch in rows if epoch == self.best_epoch), None)

    def curve(self, *keys: str) -> EpochCurve:
        """Return the mean of some columns by epoch."""
        rows = [[row.get(key) for key in keys] for row in self.history]
        present = [[value for value in values if value is not None] for values in rows]
        values = [fmean(found) if found else None for found in present]
        best = self.best_epoch if keys[0].startswith("val_") else None
        return EpochCurve(self.run.label, self.style, self.epochs, values, best)


def training_section(data: ReportData, writer: ReportWriter) -> Section:
    """Return how training went, and write `training.csv` and `evaluation.csv` with all numbers behind it."""
    page = writer.section("training", data=data)
    page.csv("evaluation", [row for run in data.runs for row in _evaluation_rows(run)])
    trained = [run for run in data.runs if run.evaluated.metrics.stage != "0"]
    recorded = [run for run in trained if run.history]
    damaged = {run: reason for run in trained if (reason := run.damage_of("history"))}
    gone = [run for run in trained if not run.history and run not in damaged]
    page.words("scores")
    page.picture("scores", scores_figure({METRIC_TITLES[metric]: _bars(data, metric) for metric in TESTED}))
    page.words("records", trained=trained, damaged=damaged, gone=gone)
    if recorded:
        every = [_Training(run, run.history or (), 0) for run in recorded]
        page.csv("training", [line for one in every for line in _epoch_rows(one)])
        drawn = _drawn(recorded, data)
        page.words("losses", drawn=len(drawn), recorded=len(recorded))
        if drawn:
            _losses(drawn, page)
            _validation(drawn, page)
            _rates(drawn, page)
        _numbers(every, page)
    return page.finished()


def _epoch_rows(training: _Training) -> Iterator[dict[str, object]]:
    row = training.run.row
    best = (training.run.training_result or {}).get("best_epoch")
    for epoch in training.history:
        named = {"run": row.run, "stage": row.stage, "model": row.model, "losses": row.losses_text}
        yield {**named, **epoch, "is_best": int(epoch.get("epoch") == best)}


def _evaluation_rows(run: ReportRun) -> list[dict[str, object]]:
    """Each draw of each aspect and setting, and the averages: over aspects, then draws, as in the protocol.

    Each with the queries that it is of, averages with those of all draws.
    """
    metrics = run.evaluated.metrics
    rows: list[dict[str, object]] = []
    for entry in metrics.results:
        draws, queries = [], []
        for outcomes in run.evaluated.outcomes_of(run.evaluated.aspects(), entry):
            queries.append(outcomes.counts.sum(axis=0))
            draws.append(outcomes.sums.sum(axis=0) / queries[-1][:, None])
        parts = dict(zip(run.evaluated.aspects(), zip(draws, queries, strict=True), strict=True))
        for aspect, (values, counts) in {**parts, metrics.aspect: (np.mean(draws, axis=0), sum(queries))}.items():
            named: dict[int | str, Any] = {**dict(enumerate(values)), "mean": values.mean(axis=0)}
            named["std"] = values.std(axis=0)
            setting = {"run": metrics.run, "aspect": aspect, "gallery_protocol": entry.gallery_protocol}
            for draw, numbers in named.items():
                scores = dict(zip(METRICS, map(float, numbers), strict=True))
                of_queries = int(counts[draw] if isinstance(draw, int) else counts.sum())
                rows.append({**setting, "flip": entry.flip, "draw": draw, **scores, "matched_queries": of_queries})
    return rows


def _bars(data: ReportData, metric: str) -> list[ScoreBar]:
    scores = [(run, run.row.scores[metric]) for run in data.runs]
    return [ScoreBar(run.label, score.mean, score.low, score.high, metric in run.row.best) for run, score in scores]


def _drawn(recorded: Sequence[ReportRun], data: ReportData) -> list[_Training]:
    """Give every run a style of its own where there are few, and keep to those that all figures show elsewhere."""
    if len(recorded) > MOST_SERIES:
        recorded = [run for run in recorded if run in data.shown]
    taken = {run.style for run in recorded}
    shown = {run.style for run in data.shown}
    free = iter(sorted(set(range(MOST_SERIES)) - taken, key=lambda style: (style in shown, style)))
    return [_Training(run, run.history or (), run.style if run.style is not None else next(free)) for run in recorded]


def _losses(drawn: Sequence[_Training], page: SectionWriter) -> None:
    columns = _columns("loss_", drawn)
    terms: dict[str, list[str]] = {}
    for column in columns:
        terms.setdefault(column.removeprefix("loss_").rsplit("/", 1)[-1], []).append(column)
    panels = [_loss_panel(term, keys, drawn) for term, keys in terms.items()]
    totals = [(one.run.label, one.curve("loss_total").points) for one in drawn if one.has("loss_total")]
    branches = any("/" in column for column in columns)
    page.picture("losses", epochs_figure(panels), panels=len(panels), totals=totals, branches=branches)


def _columns(prefix: str, drawn: Sequence[_Training]) -> list[str]:
    return list(dict.fromkeys(key for one in drawn for row in one.history for key in row if key.startswith(prefix)))


def _loss_panel(term: str, keys: Sequence[str], drawn: Sequence[_Training]) -> EpochPanel:
    curves = [one.curve(*keys) for one in drawn if any(one.has(key) for key in keys)]
    values = [value for curve in curves for _, value in curve.points]
    logarithmic = min(values) > 0 and max(values) > _LOGARITHMIC_FROM * min(values)
    unit = "Weighted sum" if term == "total" else "Unweighted loss"
    return EpochPanel(term.replace("_", " ").capitalize(), unit, curves, logarithmic=logarithmic)


def _validation(drawn: Sequence[_Training], page: SectionWriter) -> None:
    validated = [one for one in drawn if one.validated]
    page.words("validation", without=[one.run for one in drawn if not one.validated])
    if validated:
        panels = [
            EpochPanel(title, f"{title} (%)", [one.curve(f"val_{metric}") for one in validated], percent=True)
            for metric, title in (("rank1", "Rank-1"), ("map", "mAP"))
        ]
        page.picture("validation", epochs_figure(panels), validated=validated, images=_images(validated))


def _rates(drawn: Sequence[_Training], page: SectionWriter) -> None:
    rates = _columns("lr_", drawn)
    same = all(len({row.get(key) for key in rates}) == 1 for one in drawn for row in one.history)
    columns = {key: (f"Learning rate, {_RATE_TITLES.get(key[3:], key[3:])}", "Learning rate") for key in rates}
    if same and rates:
        columns = {rates[0]: ("Learning rate", "Learning rate")}
    columns |= {
        "images_per_second": ("Speed", "Images per second"),
        "peak_memory_mib": ("Peak memory", "Memory (MiB)"),
        "peak_gpu_memory_mib": ("Peak GPU memory", "GPU memory (MiB)"),
    }
    panels = [
        EpochPanel(title, unit, [one.curve(key) for one in drawn if one.has(key)])
        for key, (title, unit) in columns.items()
        if any(one.has(key) for one in drawn)
    ]
    if panels:
        speeds = [(one.run.label, one.curve("images_per_second")) for one in drawn if one.has("images_per_second")]
        means = [(label, fmean(value for _, value in curve.points)) for label, curve in speeds]
        page.words("learning_rates")
        page.picture("learning_rates", epochs_figure(panels), speeds=means, shared=same and len(rates) > 1)


def _numbers(every: Sequence[_Training], page: SectionWriter) -> None:
    rows = [_summary(one) for one in every]
    validated = any(one.validated for one in every)
    validation = [
        Column("best_epoch", "Best epoch", numeric=True),
        Column("best_val_rank1", "Rank-1 there (%)", percent, numeric=True),
        Column("best_val_map", "mAP there (%)", percent, numeric=True),
    ]
    gpu = Column("peak_gpu_memory_mib", "Peak GPU memory (MiB)", "{:,.0f}".format, numeric=True)
    columns = [
        Column("label", "Run"),
        Column("epochs", "Epochs", numeric=True),
        *(validation if validated else []),
        Column("seconds", "Seconds", "{:,.0f}".format, numeric=True),
        Column("images_per_second", "Images/s", "{:,.0f}".format, numeric=True),
        Column("peak_memory_mib", "Peak memory (MiB)", "{:,.0f}".format, numeric=True),
        *([gpu] if any(row["peak_gpu_memory_mib"] is not None for row in rows) else []),
    ]
    page.words("training_runs")
    csv = page.csv("training_runs", rows)
    page.table("training_runs", columns, rows, csv, validated=validated, images=_images(every))


def _summary(one: _Training) -> dict[str, Any]:
    result = one.run.training_result or {}
    return {
        "run": one.run.row.run,
        "label": one.run.label,
        "epochs": len(one.history),
        "best_epoch": one.best_epoch,
        "best_val_rank1": one.at_best("val_rank1"),
        "best_val_map": one.at_best("val_map"),
        "seconds": result.get("seconds") or sum(row.get("seconds") or 0 for row in one.history) or None,
        **{key: result.get(key) for key in ("images_per_second", "peak_memory_mib", "peak_gpu_memory_mib")},
    }


def _images(every: Sequence[_Training]) -> list[int]:
    """Return on how many images runs were validated."""
    return sorted({int(count) for one in every if (count := one.at_best("validation_images"))})
