from pathlib import Path

import pytest
from tiny_study import baseline_config, tiny_config

from handclip.config.naming import run_name
from handclip.engine.study import run_experiment, run_experiments
from handclip.errors import ConfigError, HandCLIPError


def test_an_evaluation_in_the_way_is_noticed_before_training(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests)
    folder = here / "eval_logs" / run_name(config)
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(HandCLIPError, match="holds an earlier evaluation of a run of this name"):
        run_experiment(config)
    assert not (here / "train_logs").exists()


def test_stages_and_losses_are_named_as_in_the_file_names(manifests: Path, here: Path) -> None:
    stage1 = tiny_config(manifests, epochs=1)
    checkpoint = str(here / "saved_models" / f"{run_name(stage1)}.pth")
    stage2 = tiny_config(
        manifests, epochs=1, resume_from=checkpoint, losses=[{"type": "cross_entropy"}, {"type": "triplet"}]
    )
    outcomes, failures = run_experiments([baseline_config(manifests, experiment="zero"), stage1, stage2])
    assert failures == []
    assert [(o.stage, o.losses) for o in outcomes] == [("0", "-"), ("1", "ce"), ("2", "ce + triplet")]


def test_a_failure_stops_unless_asked_to_keep_going(manifests: Path, here: Path) -> None:
    bad = tiny_config(manifests, resume_from=str(here / "missing.pth"), epochs=1)
    good = baseline_config(manifests, experiment="zero")
    with pytest.raises(ConfigError, match="no such file"):
        run_experiments([bad, good])
    outcomes, [failure] = run_experiments([bad, good], keep_going=True)
    assert [o.config for o in outcomes] == [good]
    assert failure.config == bad
    assert "no such file" in str(failure.error)
