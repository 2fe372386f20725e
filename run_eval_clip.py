"""Unified evaluator: `python run_eval_clip.py --config configs/eval_stage0_baseline/eval_vitb16_11k_dorsal_r.yml`.

The same as `handclip evaluate`, under its first name; the config may also be given without `--config`.
"""

from pathlib import Path
from typing import Annotated

import typer

from handclip.cli import Overrides, Overwrite, Program, evaluate_config, run, set_up_logging
from handclip.errors import ConfigError


def main(
    path: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="Experiment file (YAML).")] = None,
    config: Annotated[Path | None, typer.Option(metavar="CONFIG", help="Experiment file (YAML).")] = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Evaluate a baseline or a trained model on every draw, gallery and flip setting."""
    if (path is None) == (config is None):
        raise ConfigError("give one config: run_eval_clip.py --config CONFIG")
    set_up_logging()
    evaluate_config(config or path, set_ or [], overwrite=overwrite)


if __name__ == "__main__":
    app = Program(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    run(app)
