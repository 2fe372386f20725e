"""Stage 2: fine-tune the image encoder with each loss variant, on top of the stage-1 checkpoint.

Without `--config`, every experiment of `configs/train_stage2_loss_variants/` is trained and evaluated, and the
comparison is printed. `--set` changes keys of every config, such as `--set aspect=palmar_l`.
"""

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from handclip.cli import Overrides, Resume, run, set_up_logging
from handclip.config.loading import load_config
from handclip.errors import ConfigError

CONFIGS = Path("configs/train_stage2_loss_variants")


def main(
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Train and evaluate this variant only.")] = None,
    configs: Annotated[Path, typer.Option(metavar="DIR", help="Folder of variants.")] = CONFIGS,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the comparison goes.")] = Path("result_logs"),
    set_: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train and evaluate the loss variants of stage 2, and compare them."""
    set_up_logging()
    paths = [config] if config else sorted(configs.glob("*.yml"))
    if not paths:
        raise ConfigError(f"{configs}: there are no experiment files (*.yml)")
    experiments = [load_config(path, set_ or []) for path in paths]

    from handclip.console import stdout
    from handclip.engine.study import run_experiments
    from handclip.report.comparison import compare_outcomes, write_comparison

    outcomes = defaultdict(list)
    for outcome in run_experiments(experiments, resume=resume):
        outcomes[outcome.config.model].append(outcome)
    for model, of_model in outcomes.items():
        flip = max(of_model[0].config.flip_settings)  # "sum" where both were evaluated
        for protocol in of_model[0].evaluation.gallery_protocols:
            comparison = compare_outcomes(of_model, gallery_protocol=protocol, flip=flip)
            stdout.print(f"\n{model}")
            stdout.print(comparison.to_rich())
            name = f"stage2_loss_variants_{model}_{of_model[0].config.dataset}_{of_model[0].config.aspect}_{protocol}"
            write_comparison(comparison, out, name)
    stdout.print(f"\nThe tables are in {out}/", soft_wrap=True)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
