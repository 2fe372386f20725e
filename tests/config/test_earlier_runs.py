"""`resume_from` and `checkpoint` may name the experiment file or the folder of the run whose model they mean."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import load_config, load_trained_config, parse_config
from handclip.config.naming import run_name
from handclip.errors import ConfigError
from handclip.runs.run_folder import RunFolder

STAGE1 = {"experiment": "stage1", "model": "vitb16", "dataset": "11k", "aspect": "dorsal_r"}
STAGE2 = {**STAGE1, "experiment": "stage2"}


def write(path: str, **values: Any) -> Path:
    Path(path).write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return Path(path)


def error_of(path: str | Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Path(path), overrides, to_train=True)
    return str(caught.value)


def trained(config: ExperimentConfig) -> RunFolder:
    """Leave what tells that a run was trained."""
    files = RunFolder.of(config)
    files.open(config, resume=False)
    for file in (files.best, files.last):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"weights")
    return files


@pytest.fixture
def stage1(here: Path) -> RunFolder:
    """A run that was trained in the working directory from `stage1.yml`."""
    return trained(load_config(write("stage1.yml", **STAGE1, lr=0.001, pretrained="none")))


def test_a_config_a_folder_and_the_model_itself_name_the_same(stage1: RunFolder) -> None:
    named = ["stage1.yml", str(stage1.folder), f"{stage1.folder}/", str(stage1.folder.resolve()), str(stage1.best)]
    configs = [load_config(write("stage2.yml", **STAGE2, resume_from=one)) for one in named]
    assert [config.resume_from for config in configs] == [stage1.best] * len(named)
    configs += [load_config(write("plain.yml", **STAGE2), [f"resume_from={one}"]) for one in named]
    assert all(config == configs[0] for config in configs)
    assert run_name(configs[0]) == run_name(parse_config({**STAGE2, "resume_from": str(stage1.best)}, "test"))
    assert configs[0].to_dict()["resume_from"] == str(stage1.best)


def test_checkpoint_names_a_run_alike(stage1: RunFolder) -> None:
    for named in ("stage1.yml", stage1.folder, stage1.best):
        assert load_config(write("any.yml", **STAGE2, checkpoint=str(named))).checkpoint == stage1.best
    assert load_config(Path("any.yml"), [f"checkpoint={stage1.last}"]).checkpoint == stage1.last
    # A model may be evaluated on other data than it was trained on.
    assert load_config(Path("any.yml"), ["checkpoint=stage1.yml", "aspect=palmar_l"]).checkpoint == stage1.best


def test_patterns_lead_to_the_run_of_the_same_aspect(here: Path) -> None:
    left = trained(load_config(write("stage1_vitb16_palmar_l.yml", **{**STAGE1, "aspect": "palmar_l"})))
    path = write("stage2.yml", **STAGE2, resume_from="stage1_{model}_{aspect}.yml")
    assert load_config(path, ["aspect=palmar_l"]).resume_from == left.best
    named = str(left.folder).replace("palmar_l", "{aspect}").replace("vitb16", "{model}")
    assert load_config(path, ["aspect=palmar_l", f"resume_from={named}"]).resume_from == left.best


def test_overrides_are_the_later_run_s_alone(stage1: RunFolder) -> None:
    changes = ["lr=0.1", "seed=3", "save_dir=elsewhere", "pretrained=other.pt", "resume_from=stage1.yml"]
    config = load_config(write("stage2.yml", **STAGE2), changes)
    assert config.resume_from == stage1.best
    assert (config.lr, config.seed, config.save_dir) == (0.1, 3, Path("elsewhere"))


def test_a_config_of_other_data_is_refused_and_its_model_is_not(stage1: RunFolder) -> None:
    path = write("stage2.yml", **STAGE2, resume_from="stage1.yml")
    assert error_of(path, "aspect=palmar_l") == (
        "stage2.yml: resume_from: stage1.yml: trains on 11k dorsal_r, but this run on 11k palmar_l. "
        f"If that is meant, name {stage1.best}"
    )
    assert "but this run on hd dorsal" in error_of(path, "dataset=hd")
    for meant in (stage1.best, stage1.folder):
        assert load_config(path, ["dataset=hd", f"resume_from={meant}"], to_train=True).resume_from == stage1.best
    folder = {"dataset": "folder", "aspect": None, "data_root": "hands"}
    write("other.yml", **{**STAGE1, **folder})
    assert "trains on folder hand (hands), but this run on folder hand (elsewhere)" in error_of(
        write("on_folder.yml", **{**STAGE2, **folder, "data_root": "elsewhere"}, resume_from="other.yml")
    )
    # Who evaluates across domains names other data, too, of a model that was trained on the file's own.
    assert load_config(path, ["aspect=palmar_l"]).resume_from == stage1.best
    assert load_trained_config(path, ["aspect=palmar_l"]) == load_config(path)


def test_a_run_that_has_no_model_yet_is_told_with_the_command_that_trains_it(here: Path) -> None:
    stage1 = RunFolder.of(load_config(write("stage1.yml", **STAGE1)))
    path = write("stage2.yml", **STAGE2, resume_from="stage1.yml")
    said = f"the model of this run, {stage1.best}, is not there. "
    assert error_of(path) == f"stage2.yml: resume_from: stage1.yml: {said}Train it first: handclip train stage1.yml"
    assert error_of(write("plain.yml", **STAGE2), "resume_from=stage1.yml").startswith(
        "--set resume_from=stage1.yml: resume_from: stage1.yml: the model of this run"
    )
    stage1.open(load_config(Path("stage1.yml")), resume=False)
    assert f"resume_from: {stage1.folder}: {said}It may have been moved" in error_of(
        path, f"resume_from={stage1.folder}"
    )


def test_what_was_trained_needs_no_earlier_model(stage1: RunFolder) -> None:
    path = write("stage2.yml", **STAGE2, resume_from="stage1.yml")
    own = trained(load_config(path))
    stage1.best.unlink()
    assert RunFolder.of(load_config(path, to_train=True)) == own
    own.best.unlink()
    assert RunFolder.of(load_config(path)) == own
    assert "Train it first" in error_of(path)


def test_stages_upon_stages(stage1: RunFolder) -> None:
    second = trained(load_config(write("stage2.yml", **STAGE2, resume_from="stage1.yml")))
    third = load_config(write("stage3.yml", **STAGE2, epochs=3, resume_from="stage2.yml"))
    assert third.resume_from == second.best
    # What is trained on may be a model of the same file, too.
    assert load_config(Path("stage2.yml"), ["resume_from=stage2.yml"]).resume_from == second.best


def test_a_run_that_goes_on_from_itself_is_refused(here: Path) -> None:
    write("a.yml", **STAGE2, resume_from="b.yml")
    write("b.yml", **STAGE2, resume_from="a.yml")
    write("own.yml", **STAGE2, resume_from="own.yml")
    for path in ("a.yml", "b.yml", "own.yml"):
        assert "this experiment goes on from itself" in error_of(path)
    Path("run").mkdir()
    write("run/config.yml", **STAGE2, resume_from="run")
    said = error_of(write("later.yml", **STAGE2, resume_from="run"))
    assert "this experiment goes on from itself" in said and len(said) < 300


def test_what_names_no_run_is_explained(stage1: RunFolder) -> None:
    path = write("stage2.yml", **STAGE2)
    write("baseline.yml", **STAGE1, variant="baseline")
    write("wrong.yml", **STAGE1, lr="fast")
    for named, said in {
        "no.yml": "--set resume_from=no.yml: resume_from: no.yml: no such file",
        "baseline.yml": "resume_from: baseline.yml: is a baseline, which trains no model",
        "wrong.yml": "resume_from: wrong.yml: lr: input should be a valid number",
        "saved_models": "resume_from: saved_models: is not the folder of a run, which holds a config.yml",
    }.items():
        assert said in error_of(path, f"resume_from={named}")
    (stage1.folder / "config.yml").write_text("damaged: [")
    assert "config.yml: is not YAML that can be read" in error_of(path, f"resume_from={stage1.folder}")


def test_the_folder_of_an_evaluation_names_the_model_that_was_evaluated(stage1: RunFolder) -> None:
    folder = Path("eval_logs/any")
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    path = write("stage2.yml", **STAGE2)
    for checkpoint, model in ((None, stage1.best), (str(stage1.last), stage1.last)):
        values = load_config(Path("stage1.yml")).to_dict()
        write("eval_logs/any/config.yml", **{**values, "checkpoint": checkpoint})
        assert load_config(path, ["resume_from=eval_logs/any"]).resume_from == model


def test_the_model_of_a_study_that_was_moved(stage1: RunFolder, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "study").mkdir()
    for name in ("train_logs", "saved_models"):
        Path(name).rename(here / "study" / name)
    config = load_config(write("stage2.yml", **STAGE2), [f"resume_from=study/{stage1.folder}"])
    assert config.resume_from == here / "study" / stage1.best
    assert run_name(config) == run_name(parse_config({**STAGE2, "resume_from": str(stage1.best)}, "test"))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.text(max_size=6) | st.sampled_from([".", "..", "/", "a" * 300, "x" * 5000, "~", "a\0b", ".yml", "\ud800.yml"])
)
def test_any_name_is_an_experiment_or_a_config_error(name: str) -> None:
    try:
        parse_config({**STAGE2, "resume_from": name}, "test")
    except ConfigError as error:
        assert str(error).startswith("test: ")
