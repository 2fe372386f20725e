"""Stage 2: fine-tune the image encoder with each loss variant, on top of the stage-1 checkpoint.

Without `--config`, every experiment of `configs/train_stage2_loss_variants/` is trained and evaluated, and the
comparison is printed. `--set` changes keys of every config, such as `--set aspect=palmar_l`. A study file
(`handclip study configs/studies/loss_variants.yml`) runs stage 1 too, and more models beside.
"""

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from handclip.cli import Overrides, Program, Resume, print_study, run, set_up_logging
from handclip.config.loading import load_config
from handclip.errors import ConfigError

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
    experiments = [load_config(path, set_ or [], to_train=True) for path in paths]
    if absent := sorted({str(e.resume_from) for e in experiments if e.resume_from and not e.resume_from.exists()}):
        raise ConfigError(
            "stage 2 goes on from stage 1, which is not there yet: " + ", ".join(absent) + ".\n"
            "Train it first (configs/train_stage1_frozen_text/), or name another with --set resume_from=FILE; "
            "--model NAME runs the variants of one model only"
        )

    from handclip.runs.study import PlannedRun
    from handclip.studies import run_and_compare

    plan = [PlannedRun(experiment) for experiment in experiments]
    # The hash keeps apart the comparisons of other seeds, other settings, or of fewer variants.
    runs = hashlib.sha256("\n".join(run.name for run in plan).encode()).hexdigest()[:8]
    folder = out / f"stage2_loss_variants_{runs}"
    print_study(lambda: run_and_compare(plan, folder, resume=resume), folder)


if __name__ == "__main__":
    app = Program(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
