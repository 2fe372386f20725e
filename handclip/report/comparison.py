"""From outcomes of a study to a comparison under one protocol."""

from collections.abc import Sequence
from pathlib import Path

from handclip.engine.study import Outcome
from handclip.errors import HandCLIPError
from handclip.files import write_json, write_text
from handclip.report.tables import Comparison, ComparisonRow, protocol_line, write_evaluation_log


def compare_outcomes(
    outcomes: Sequence[Outcome], *, gallery_protocol: str = "gallery", flip: str = "sum"
) -> Comparison:
    """Set runs side by side under one gallery protocol and flip setting.

    Raises:
        HandCLIPError: they were not evaluated on the same manifest.
    """
    first = outcomes[0].evaluation
    rows = []
    for outcome in outcomes:
        metrics = outcome.evaluation.metrics
        if metrics["manifest_sha256"] != first.metrics["manifest_sha256"]:
            raise HandCLIPError(
                f"{metrics['run']} and {first.run} were evaluated on different manifests; they cannot be compared"
            )
        entry = outcome.evaluation.result(gallery_protocol, flip)
        training = outcome.training
        rows.append(
            ComparisonRow(
                stage=outcome.stage,
                losses=outcome.losses,
                run=metrics["run"],
                mean=entry["mean"],
                std=entry["std"],
                best_epoch=training.best_epoch if training else None,
                training_seconds=training.seconds if training else None,
                images_per_second=training.images_per_second if training else None,
            )
        )
    return Comparison(protocol_line(first.metrics, first.result(gallery_protocol, flip)), rows)


def write_comparison(comparison: Comparison, folder: Path, name: str = "comparison") -> None:
    """Write `comparison.md`, `.csv` and `.json`."""
    write_text(folder / f"{name}.md", comparison.to_markdown())
    write_text(folder / f"{name}.csv", comparison.to_csv())
    write_json(folder / f"{name}.json", comparison.to_dict())


def write_evaluation_logs(outcomes: Sequence[Outcome]) -> None:
    """Write the `eval.log` of every outcome."""
    for outcome in outcomes:
        facts = {"Experiment": outcome.config.experiment, "Variant": outcome.config.variant}
        write_evaluation_log(outcome.evaluation.folder, outcome.evaluation.metrics, facts)
