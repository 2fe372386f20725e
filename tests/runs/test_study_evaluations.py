"""Which evaluations of a run are taken for done: those that say so themselves, and each for one config only."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_study import load_manifest, tiny_config

from handclip.config.experiment import ExperimentConfig
from handclip.config.naming import evaluation_name, run_name
from handclip.runs.evaluated_model import checkpoint_path
from handclip.runs.study import PlannedRun, run_plan

FIRST, SECOND = "1" * 64, "2" * 64


@pytest.fixture
def run(here: Path) -> ExperimentConfig:
    for name, sha256 in {"first": FIRST, "second": SECOND}.items():
        (here / name).mkdir()
        (here / name / "manifest_palmar_l.json").write_text(json.dumps({"sha256": sha256}))
    return tiny_config(here / "own")


def other(run: ExperimentConfig, manifest: str, **changes: Any) -> ExperimentConfig:
    """An evaluation of a run on another aspect."""
    return tiny_config(Path(manifest), aspect="palmar_l", checkpoint=str(checkpoint_path(run)), **changes)


def evaluated(config: ExperimentConfig, run: ExperimentConfig, sha256: str = "", **changes: Any) -> Path:
    """Leave what `evaluate` does, as far as it is looked at."""
    on = f"{config.dataset}_{config.aspect}_{sha256[:8]}" if sha256 else ""
    folder = config.eval_dir / evaluation_name(run_name(run), on=on, rerank=config.rerank)
    folder.mkdir(parents=True)
    metrics = {
        "dataset": config.dataset,
        "aspect": config.aspect,
        "model": config.model,
        "checkpoint": str(checkpoint_path(config)),
        "manifest_sha256": sha256,
        "rerank": config.to_dict()["rerank"],
        "settings": {
            "num_splits": config.num_splits,
            "gallery_protocols": list(config.gallery_protocols),
            "flip_settings": list(config.flip_settings),
            "test_feature": "before_neck",
        },
        **changes,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def found(run: ExperimentConfig, *others: ExperimentConfig) -> list[Path | None]:
    return PlannedRun(run, others).evaluations()


@pytest.mark.promise("study-done")
def test_one_evaluation_is_not_taken_for_that_on_another_manifest_too(run: ExperimentConfig) -> None:
    first, second = other(run, "first"), other(run, "second")
    own, one = evaluated(run, run), evaluated(second, run, SECOND)
    assert found(run, first, second) == [own, None, one]
    another = evaluated(first, run, FIRST)
    assert found(run, first, second) == [own, another, one]


@pytest.mark.promise("study-done")
def test_where_a_manifest_is_gone_still_no_evaluation_is_taken_for_two(run: ExperimentConfig) -> None:
    first, second = other(run, "first"), other(run, "second")
    one = evaluated(first, run, FIRST)
    shutil.rmtree("first")
    assert found(run, first, second)[1:] == [one, None]
    # The one that can only be the second's is left to it, although that of the first could be either.
    another = evaluated(second, run, SECOND)
    assert found(run, first, second)[1:] == [one, another]
    shutil.rmtree("second")
    assert found(run, first, second)[1:] == [one, another]
    shutil.rmtree(another)
    assert sum(folder is not None for folder in found(run, first, second)) == 1


def test_a_re_ranked_evaluation_is_not_taken_for_one_that_is_not(run: ExperimentConfig) -> None:
    plain, reranked = other(run, "first"), other(run, "first", rerank={})
    folder = evaluated(reranked, run, FIRST)
    assert found(run, plain) == [None, None]
    assert found(run, reranked) == [None, folder]


@pytest.mark.promise("study-done")
@pytest.mark.parametrize(
    "changes",
    [
        {"manifest_sha256": SECOND},
        {"rerank": {"k1": 3, "k2": 6, "lambda": 0.3}},
        {"settings": {"num_splits": 1, "gallery_protocols": ["gallery"], "flip_settings": ["none"]}},
        {"settings": None},
        {"checkpoint": "saved_models/another_last.pth"},
        {"checkpoint": None},
        {"dataset": "hd"},
    ],
    ids=str,
)
def test_an_evaluation_of_something_else_under_the_name_is_not_taken(
    run: ExperimentConfig, changes: dict[str, Any]
) -> None:
    one = other(run, "first")
    folder = evaluated(one, run, FIRST)
    assert found(run, one) == [None, folder]
    shutil.rmtree(folder)
    evaluated(one, run, FIRST, **changes)
    assert found(run, one) == [None, None]


def test_an_evaluation_whose_metrics_are_damaged_is_there_but_comes_last(run: ExperimentConfig) -> None:
    first, second = other(run, "first"), other(run, "second")
    one, another = evaluated(first, run, FIRST), evaluated(second, run, SECOND)
    (one / "metrics.json").write_text("{")
    assert found(run, second, first)[1:] == [another, one]


def test_names_that_were_cut_are_found(here: Path, run: ExperimentConfig) -> None:
    long = tiny_config(here / "own", experiment="e" * 170)
    first = other(long, "first")
    folder = evaluated(first, long, FIRST)
    assert "_x-" in folder.name
    assert found(long, first) == [None, folder]


@pytest.mark.promise("study-done")
def test_an_evaluation_that_was_never_made_is_missed_though_the_model_is_gone(manifests: Path, here: Path) -> None:
    small = {"epochs": 1, "num_splits": 1, "flip_settings": ["none"], "explained_images": 0}
    run = tiny_config(manifests, **small)
    model = checkpoint_path(run)
    (here / "another").mkdir()
    manifest = load_manifest(manifests, "palmar_l")
    replace(manifest, draws=manifest.draws[:5]).save(here / "another" / "manifest_palmar_l.json")
    others = [
        tiny_config(place, aspect="palmar_l", checkpoint=str(model), **small) for place in (manifests, here / "another")
    ]
    [report] = run_plan([PlannedRun(run, tuple(others[:1]))], resume=True)
    assert (report.faults, len(report.evaluations)) == ((), 2)
    model.unlink()
    plan = PlannedRun(run, tuple(others))
    assert plan.state == "trained"
    [report] = run_plan([plan], resume=True)
    assert f"{model}: is gone" in str(report.faults[0])
