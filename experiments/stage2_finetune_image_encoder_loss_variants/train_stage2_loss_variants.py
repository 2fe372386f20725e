"""Stage 2: fine-tune the image encoder with each loss variant, on top of the stage-1 checkpoint.

Without `--config`, every experiment of `configs/train_stage2_loss_variants/` is trained and evaluated, and the
comparison is printed. `--set` changes keys of every config, such as `--set aspect=palmar_l`.
"""

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from handclip.cli import Overrides, Resume, run, set_up_logging
from handclip.config.loading import load_config
from handclip.config.naming import run_name
from handclip.console import stdout
from handclip.errors import ConfigError, HandCLIPError

CONFIGS = Path("configs/train_stage2_loss_variants")


def main(
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Train and evaluate this variant only.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Only the variants of this model.")] = None,
    configs: Annotated[Path, typer.Option(metavar="DIR", help="Folder of variants.")] = CONFIGS,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the comparison goes.")] = Path("result_logs"),
    set_: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train and evaluate the loss variants of stage 2, and compare them."""
    set_up_logging()
    pattern = f"train_{model}_*.yml" if model else "*.yml"
    paths = [config] if config else sorted(configs.glob(pattern))
    if not paths:
        raise ConfigError(f"{configs}: there are no experiment files ({pattern})")
    experiments = [load_config(path, set_ or []) for path in paths]
    if absent := sorted({str(e.resume_from) for e in experiments if e.resume_from and not e.resume_from.exists()}):
        raise ConfigError(
            "stage 2 goes on from stage 1, which is not there yet: " + ", ".join(absent) + ".\n"
            "Train it first (configs/train_stage1_frozen_text/), or name another with --set resume_from=FILE; "
            "--model NAME runs the variants of one model only"
        )

    from handclip.engine.study import run_experiments
    from handclip.report.comparison import compare_outcomes, write_comparison, write_evaluation_logs

    outcomes, failures = run_experiments(experiments, resume=resume, keep_going=True)
    write_evaluation_logs(outcomes)
    by_model = defaultdict(list)
    for outcome in outcomes:
        by_model[outcome.config.model].append(outcome)
    for model, of_model in by_model.items():
        first = of_model[0]
        flip = max(first.config.flip_settings)  # "sum" where both were evaluated
        runs = hashlib.sha256("\n".join(outcome.evaluation.run for outcome in of_model).encode()).hexdigest()[:8]
        for protocol in first.evaluation.gallery_protocols:
            comparison = compare_outcomes(of_model, gallery_protocol=protocol, flip=flip)
            stdout.print(f"\n{model}")
            stdout.print(comparison.to_rich())
            # The hash keeps apart the tables of other seeds, other settings, or of fewer variants.
            name = f"stage2_loss_variants_{model}_{first.config.dataset}_{first.config.aspect}_{protocol}_{runs}"
            write_comparison(comparison, out, name)
    if outcomes:
        stdout.print(f"\nThe tables are in {out}/", soft_wrap=True)
    if failures:
        failed = "\n".join(f"{run_name(failure.config)}: {failure.error}" for failure in failures)
        raise HandCLIPError(f"{len(failures)} of {len(experiments)} variants failed:\n{failed}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
