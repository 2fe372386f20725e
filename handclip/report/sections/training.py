"""How training went: losses, validation, learning rates and speed by epoch, and what each run scores in the end."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from handclip.plurals import counted
from handclip.report.evaluation_log import METRIC_TITLES
from handclip.report.figures.style import MOST_SERIES
from handclip.report.figures.training import EpochCurve, EpochPanel, ScoreBar, epochs_figure, scores_figure
from handclip.report.matrix import METRICS, TESTED
from handclip.report.report_data import ReportData, ReportRun
from handclip.report.report_writer import (
    Block,
    Column,
    Heading,
    Note,
    Picture,
    ReportWriter,
    Section,
    Table,
    Text,
    percent,
)

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
        return any(row.get("val_rank1") is not None for row in self.history)

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights were kept; None where nothing tells it from the others."""
        epoch = (self.run.training_result or {}).get("best_epoch")
        return int(epoch) if epoch is not None and self.validated else None

    def has(self, key: str) -> bool:
        return any(row.get(key) is not None for row in self.history)

    def curve(self, *keys: str) -> EpochCurve:
        """Return the mean of some columns by epoch."""
        rows = [[row.get(key) for key in keys] for row in self.history]
        present = [[value for value in values if value is not None] for values in rows]
        values = [fmean(found) if found else None for found in present]
        best = self.best_epoch if keys[0].startswith("val_") else None
        return EpochCurve(self.run.label, self.style, _epochs(self.history), values, best)


def training_section(data: ReportData, writer: ReportWriter) -> Section:
    """Return how training went, and write `training.csv` and `evaluation.csv` with all numbers behind it."""
    writer.csv("evaluation", [row for run in data.runs for row in _evaluation_rows(run)])
    trained = [run for run in data.runs if run.evaluated.metrics.stage != "0"]
    recorded = [run for run in trained if run.history]
    blocks: list[Block] = [
        Heading("What each run scores in the end"),
        _scores(data, writer),
        Text(
            "tables/evaluation.csv has every draw of every run, gallery and flip setting, and the averages of all "
            "of them."
        ),
    ]
    if not trained:
        blocks.append(Text("Nothing was trained: all runs are baselines, the encoder as it was found."))
    if len(recorded) < len(trained):
        blocks += _records_missing([run for run in trained if not run.history])
    if recorded:
        every = [_Training(run, run.history or (), 0) for run in recorded]
        writer.csv("training", [line for one in every for line in _epoch_rows(one)])
        drawn = _drawn(recorded, data)
        blocks += [*_losses(drawn, len(recorded), writer), *_validation(drawn, writer), *_rates(drawn, writer)]
        blocks += [Heading("In numbers"), _numbers(every, writer)]
    return Section("training", "Training", "Did each run learn, how far, and at what price?", blocks)


def _epoch_rows(training: "_Training") -> Iterator[dict[str, object]]:
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


def _scores(data: ReportData, writer: ReportWriter) -> Picture:
    bars = {
        METRIC_TITLES[metric]: [
            ScoreBar(run.label, score.mean, score.low, score.high, metric in run.row.best)
            for run in data.runs
            for score in [run.row.scores[metric]]
        ]
        for metric in TESTED
    }
    best = data.best.row.scores
    return writer.picture(
        "scores",
        scores_figure(bars),
        alt=f"Bars of Rank-1 and mAP of {counted(len(data.runs), 'run')}. The highest Rank-1 has "
        f"{data.best.label}: {percent(best['rank1'].mean)} %, with an mAP of {percent(best['map'].mean)} %.",
        caption=f"Percent of the {data.block.denominator}. Rank-1 is how often the first image of the ranked "
        "gallery is of the right person; mAP also "
        "counts how far down the right one is otherwise. The black line is the 95 % interval over people: where the "
        "score over all people of this kind is likely to be. The highest of each metric is darker. Lines that overlap "
        "do not tell whether a difference is real; the verdict's tests do.",
    )


def _records_missing(runs: Sequence[ReportRun]) -> Iterator[Note]:
    damaged = {run: reason for run in runs if (reason := run.damage_of("history"))}
    if damaged:
        yield Note(
            f"The record of training of {_numbers_of(list(damaged))} cannot be shown: {'; '.join(damaged.values())}.",
            "missing",
        )
    gone = [run for run in runs if run not in damaged]
    if gone:
        yield Note(
            f"No record of training was found for {counted(len(gone), 'run')}: {_numbers_of(gone)}. Training writes "
            "metrics.csv to train_logs/<run>; keep train_logs beside eval_logs, and make the report again.",
            "missing",
        )


def _drawn(recorded: Sequence[ReportRun], data: ReportData) -> list[_Training]:
    """Give every run a style of its own where there are few, and keep to those that all figures show elsewhere."""
    if len(recorded) > MOST_SERIES:
        recorded = [run for run in recorded if run in data.shown]
    taken = {run.style for run in recorded}
    shown = {run.style for run in data.shown}
    free = iter(sorted(set(range(MOST_SERIES)) - taken, key=lambda style: (style in shown, style)))
    return [_Training(run, run.history or (), run.style if run.style is not None else next(free)) for run in recorded]


def _losses(drawn: Sequence[_Training], recorded: int, writer: ReportWriter) -> list[Block]:
    if not drawn:
        return [Text("None of the runs that the figures show was trained; tables/training.csv has those that were.")]
    columns = [key for one in drawn for row in one.history for key in row if key.startswith("loss_")]
    terms: dict[str, list[str]] = {}
    for column in dict.fromkeys(columns):
        terms.setdefault(column.removeprefix("loss_").rsplit("/", 1)[-1], []).append(column)
    panels = [_loss_panel(term, keys, drawn) for term, keys in terms.items()]
    texts = [
        "A loss says how wrong the model is on the training images, and training makes it smaller. Losses of "
        "different kinds have different scales, so look at whether a curve falls, not at how high it is.",
        "One epoch is one pass over the training images. A run of stage 2 goes on from the weights of a run of stage "
        "1, and its epochs are counted from 1 again.",
    ]
    if recorded > len(drawn):
        texts.append(
            f"{recorded} runs were trained; the figures show {len(drawn)} of them, the best of each model and stage. "
            "tables/training.csv has every epoch of all of them."
        )
    totals = [(one.run.label, one.curve("loss_total").points) for one in drawn if one.has("loss_total")]
    falls = "; ".join(f"{label}: {points[0][1]:.3g} to {points[-1][1]:.3g}" for label, points in totals)
    branches = any("/" in column for column in columns)
    caption = (
        "Mean of each epoch's batches. The total is the weighted sum that is minimised; each term is shown before "
    )
    caption += "weighting, " + (
        "averaged over the branches of models that have several, such as the MBA-Net, whose total adds them up."
        if branches
        else "by itself."
    )
    picture = writer.picture(
        "losses",
        epochs_figure(panels),
        alt=f"Training losses by epoch, {counted(len(panels), 'panel')}. Total loss from first to last epoch: {falls}.",
        caption=caption,
    )
    return [Heading("Losses"), *map(Text, texts), picture]


def _loss_panel(term: str, keys: Sequence[str], drawn: Sequence[_Training]) -> EpochPanel:
    curves = [one.curve(*keys) for one in drawn if any(one.has(key) for key in keys)]
    values = [value for curve in curves for _, value in curve.points]
    logarithmic = min(values) > 0 and max(values) > _LOGARITHMIC_FROM * min(values)
    unit = "Weighted sum" if term == "total" else "Unweighted loss"
    title = term.replace("_", " ").capitalize()
    return EpochPanel(title, unit, curves, logarithmic=logarithmic)


def _validation(drawn: Sequence[_Training], writer: ReportWriter) -> list[Block]:
    validated = [one for one in drawn if one.validated]
    blocks: list[Block] = [Heading("Validation")] if drawn else []
    if len(validated) < len(drawn):
        without = _numbers_of([one.run for one in drawn if not one.validated])
        who = f"{without.capitalize()} {'was' if len(drawn) - len(validated) == 1 else 'were'}"
        blocks.append(
            Note(
                f"{who} trained without validation (train_split: train_all), which trains on the validation images "
                "too. The weights of the last epoch were kept, chosen in advance and not by a score. To see validation "
                "by epoch, train with train_split: train.",
                "missing",
            )
        )
    if not validated:
        return blocks
    panels = [
        EpochPanel(title, f"{title} (%)", [one.curve(f"val_{metric}") for one in validated], percent=True)
        for metric, title in (("rank1", "Rank-1"), ("map", "mAP"))
    ]
    found = "; ".join(
        f"{one.run.label}: epoch {one.best_epoch}, Rank-1 {_percent_or_dash(_at_best(one, 'val_rank1'))} %, "
        f"mAP {_percent_or_dash(_at_best(one, 'val_map'))} %"
        for one in validated
    )
    picture = writer.picture(
        "validation",
        epochs_figure(panels),
        alt=f"Validation Rank-1 and mAP by epoch. Best epochs: {found}.",
        caption="Each validation image of the training people searches for its person among one training image of each "
        "of them. The large marker is at the epoch whose weights were kept and tested. These scores choose an epoch; "
        "they do not foretell those of the test, whose people the model has never seen and whose gallery has another "
        f"size.{_of_images(validated)}",
    )
    return [*blocks, picture]


def _rates(drawn: Sequence[_Training], writer: ReportWriter) -> list[Block]:
    if not drawn:
        return []
    rates = list(dict.fromkeys(key for one in drawn for row in one.history for key in row if key.startswith("lr_")))
    same = all(len({row.get(key) for key in rates}) == 1 for one in drawn for row in one.history)
    titles = {key: f"Learning rate, {_RATE_TITLES.get(key[3:], key[3:])}" for key in rates}
    columns = {rates[0]: ("Learning rate", "Learning rate")} if same and rates else {}
    columns = columns or {key: (title, "Learning rate") for key, title in titles.items()}
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
    if not panels:
        return []
    speeds = [(one.run.label, one.curve("images_per_second").points) for one in drawn if one.has("images_per_second")]
    means = "; ".join(f"{label}: {fmean(value for _, value in points):.0f}" for label, points in speeds)
    kinds = "It is the same for the encoder and the new layers. " if same and len(rates) > 1 else ""
    picture = writer.picture(
        "learning_rates",
        epochs_figure(panels),
        alt=f"Learning rate, speed and memory of training by epoch. Mean images per second: {means}.",
        caption=f"The learning rate is how large a step training takes, here at the end of each epoch. {kinds}Speed "
        "and memory are of the machine that trained, and compare runs only where that was the same and had nothing "
        "else to do. Peak memory is the most that the process has held so far.",
    )
    return [Heading("Learning rate, speed and memory"), picture]


def _numbers(every: Sequence[_Training], writer: ReportWriter) -> Table:
    rows = []
    for one in every:
        result = one.run.training_result or {}
        seconds = [row["seconds"] for row in one.history if row.get("seconds") is not None]
        rows.append(
            {
                "run": one.run.row.run,
                "label": one.run.label,
                "epochs": len(one.history),
                "best_epoch": one.best_epoch,
                "best_val_rank1": _at_best(one, "val_rank1"),
                "best_val_map": _at_best(one, "val_map"),
                "seconds": result.get("seconds") or sum(value or 0 for value in seconds) or None,
                "images_per_second": result.get("images_per_second"),
                "peak_memory_mib": result.get("peak_memory_mib"),
                "peak_gpu_memory_mib": result.get("peak_gpu_memory_mib"),
            }
        )
    memory = Column("peak_memory_mib", "Peak memory (MiB)", "{:,.0f}".format, numeric=True)
    gpu = Column("peak_gpu_memory_mib", "Peak GPU memory (MiB)", "{:,.0f}".format, numeric=True)
    validation = [
        Column("best_epoch", "Best epoch", numeric=True),
        Column("best_val_rank1", "Rank-1 there (%)", percent, numeric=True),
        Column("best_val_map", "mAP there (%)", percent, numeric=True),
    ]
    columns = [
        Column("label", "Run"),
        Column("epochs", "Epochs", numeric=True),
        *(validation if any(one.validated for one in every) else []),
        Column("seconds", "Seconds", "{:,.0f}".format, numeric=True),
        Column("images_per_second", "Images/s", "{:,.0f}".format, numeric=True),
        memory,
        *([gpu] if any(row["peak_gpu_memory_mib"] is not None for row in rows) else []),
    ]
    caption = "What each training run took. Every epoch, with every loss term, is in tables/training.csv."
    if any(one.validated for one in every):
        caption += " Rank-1 and mAP are those of validation at the best epoch; a run without validation has none."
        caption += _of_images(every)
    return writer.table("training_runs", columns, rows, caption)


def _epochs(history: Sequence[Row]) -> list[float]:
    return [place if (epoch := row.get("epoch")) is None else epoch for place, row in enumerate(history, start=1)]


def _at_best(one: _Training, key: str) -> float | None:
    found = [
        row.get(key) for row, epoch in zip(one.history, _epochs(one.history), strict=True) if epoch == one.best_epoch
    ]
    return found[0] if found else None


def _of_images(every: Sequence[_Training]) -> str:
    """Return a sentence on how many images validation is of; nothing where older versions have not recorded it."""
    counts = sorted({int(count) for one in every if (count := _at_best(one, "validation_images"))})
    return f" Validation is of {' or '.join(f'{count:,}' for count in counts)} images." if counts else ""


def _percent_or_dash(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _numbers_of(runs: Sequence[ReportRun]) -> str:
    """Name runs by their numbers in the table."""
    return f"run{'' if len(runs) == 1 else 's'} {', '.join(str(run.row.number) for run in runs)}"
