"""Running planned experiments: what is done is kept, what fails is reported, what hangs on it is left out."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_study import LOSSES, baseline_config, load_manifest, tiny_config

from handclip.config.experiment import HAND_ASPECTS, ExperimentConfig
from handclip.config.naming import run_name
from handclip.errors import InUseError
from handclip.locks import holding
from handclip.runs import study
from handclip.runs.evaluate import evaluation_folder
from handclip.runs.run_folder import RunFolder
from handclip.runs.study import PlannedRun, RunReport, run_plan
from handclip.runs.train import train
from handclip.studies import run_and_compare


def run_all(*configs: ExperimentConfig, resume: bool = True) -> list[RunReport]:
    return list(run_plan([PlannedRun(config) for config in configs], resume=resume))


def checkpoint_of(config: ExperimentConfig) -> str:
    return str(config.save_dir / f"{run_name(config)}.pth")


def test_stages_and_losses_are_named_as_in_the_file_names(manifests: Path) -> None:
    stage2 = tiny_config(manifests, resume_from="one.pth", losses=LOSSES["ce_triplet_center"])
    for config, stage, losses in (
        (baseline_config(manifests), "0", "no training"),
        (tiny_config(manifests), "1", "ce"),
        (stage2, "2", "ce + triplet + center"),
    ):
        assert (PlannedRun(config).stage, PlannedRun(config).losses) == (stage, losses)
    assert str(PlannedRun(stage2)) == "stage 2, vit_small: ce + triplet + center; 11k dorsal_r, seed 0"


def test_an_evaluation_in_the_way_is_noticed_before_training(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests)
    folder = here / "eval_logs" / run_name(config)
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    [report] = run_all(config, resume=False)
    assert "holds an earlier evaluation of a run of this name" in str(report.faults[0])
    assert not (here / "train_logs").exists()


def test_what_hangs_on_a_failure_is_left_out_and_the_rest_goes_on(manifests: Path, here: Path) -> None:
    bad = tiny_config(manifests, experiment="bad", resume_from=str(here / "missing.pth"), epochs=1)
    after_bad = tiny_config(manifests, experiment="after", resume_from=checkpoint_of(bad), epochs=1)
    after_that = tiny_config(manifests, experiment="later", resume_from=checkpoint_of(after_bad), epochs=1)
    good = baseline_config(manifests, experiment="zero")
    reports = run_all(bad, after_bad, after_that, good)
    assert [not report.faults for report in reports] == [False, False, False, True]
    assert "no such file" in str(reports[0].faults[0])
    assert reports[0].needs is None
    for report in reports[1:3]:
        assert report.needs == reports[0].run
        assert run_name(bad) in str(report.faults[0])
    assert len(reports[3].evaluations) == 1


def test_a_fault_of_the_programs_own_does_not_stop_the_others(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_or_break(config: ExperimentConfig, **options: Any) -> Any:
        if config.experiment == "breaks":
            raise MemoryError("cannot allocate")
        return train(config, **options)

    monkeypatch.setattr(study, "train", train_or_break)
    first, second = run_all(
        tiny_config(manifests, experiment="breaks", epochs=1), tiny_config(manifests, experiment="works", epochs=1)
    )
    [fault] = first.faults
    assert str(fault) == "training: MemoryError: cannot allocate"
    assert "train_or_break" in str(fault.details)
    assert second.faults == ()


def test_states_follow_the_files(manifests: Path, here: Path) -> None:
    run = PlannedRun(tiny_config(manifests, epochs=2))
    assert run.state == "to do"
    train(run.config, stop_after=1)
    assert run.state == "begun"
    train(run.config, resume=True)
    assert run.state == "trained"
    [report] = run_plan([run], resume=True)
    assert (run.state, report.faults) == ("done", ())
    [again] = run_plan([run], resume=True)
    assert again.evaluations[0].metrics == report.evaluations[0].metrics


def test_a_failed_evaluation_does_not_keep_stage_2_from_its_model(manifests: Path, here: Path) -> None:
    stage1 = tiny_config(manifests, experiment="one", epochs=1)
    stage2 = tiny_config(manifests, experiment="two", epochs=1, resume_from=checkpoint_of(stage1))
    elsewhere = [
        tiny_config(manifests, checkpoint=checkpoint_of(stage1), dataset="hd", aspect="dorsal", manifest=None),
        tiny_config(manifests, checkpoint=checkpoint_of(stage1), aspect="palmar_l"),
    ]
    plan = [PlannedRun(stage1, tuple(elsewhere)), PlannedRun(stage2)]
    first, second = run_plan(plan, resume=True)
    assert [fault.step for fault in first.faults] == ["evaluation on hd dorsal"]
    assert "datasets/HD: there is no such folder" in first.faults[0].message
    assert [evaluation.metrics["aspect"] for evaluation in first.evaluations] == ["dorsal_r", "palmar_l"]
    assert second.faults == ()
    assert [run.state for run in plan] == ["trained", "done"]
    assert plan[0].evaluations()[1:] == [None, first.evaluations[1].folder]


def test_what_was_measured_with_a_model_outlives_it(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests, epochs=1)
    [before] = run_all(config)
    Path(checkpoint_of(config)).unlink()
    [after] = run_all(config)
    assert (after.faults, after.evaluations) == ((), before.evaluations)
    # Unless it is damaged.
    path = before.evaluations[0].folder / "metrics.json"
    path.write_bytes(path.read_bytes().replace(b"0.", b"1.", 1))
    [after] = run_all(config)
    assert after.evaluations == ()
    assert f"{path}: is damaged or was changed" in after.faults[0].message


def test_a_finished_run_whose_data_have_changed_is_refused(manifests: Path, here: Path) -> None:
    other = load_manifest(manifests)
    (here / "tiny_hands").symlink_to(manifests.parent / "tiny_hands")  # where the manifests look for it
    (here / "others").mkdir()
    for aspect in HAND_ASPECTS:
        manifest = load_manifest(manifests, aspect)
        replace(manifest, draws=manifest.draws[:5]).save(here / "others" / f"manifest_{aspect}.json")
    assert load_manifest(here / "others").sha256 != other.sha256
    shutil.copytree(manifests, here / "mine")
    config = tiny_config(here / "mine", epochs=1)
    assert [report.faults for report in run_all(config)] == [()]
    shutil.rmtree(here / "mine")
    shutil.copytree(here / "others", here / "mine")
    [report] = run_all(config)
    assert "was trained with manifest" in str(report.faults[0])
    # Where the data are gone altogether, nothing contradicts what was measured on them.
    shutil.rmtree(here / "mine")
    [report] = run_all(config)
    assert (report.faults, len(report.evaluations)) == ((), 1)


def test_it_goes_on_after_being_killed_and_gives_the_same_numbers(
    manifests: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def configs(place: str) -> list[ExperimentConfig]:
        places = {key: str(here / place / key) for key in ("output_dir", "save_dir", "eval_dir")}
        stage1 = tiny_config(manifests, experiment="one", epochs=2, **places)
        stage2 = tiny_config(manifests, experiment="two", epochs=2, resume_from=checkpoint_of(stage1), **places)
        return [stage1, stage2]

    whole = run_all(*configs("whole"))

    class Killed(BaseException):
        pass

    def train_one_epoch_of_the_second(config: ExperimentConfig, **options: Any) -> Any:
        if config.experiment == "two":
            train(config, stop_after=1)
            raise Killed
        return train(config, **options)

    monkeypatch.setattr(study, "train", train_one_epoch_of_the_second)
    with pytest.raises(Killed):
        run_all(*configs("killed"))
    monkeypatch.setattr(study, "train", train)
    first_model = Path(checkpoint_of(configs("killed")[0]))
    before = first_model.stat().st_mtime_ns
    gone_on = run_all(*configs("killed"))
    assert first_model.stat().st_mtime_ns == before
    for one, other in zip(whole, gone_on, strict=True):
        assert one.evaluations[0].metrics["results"] == other.evaluations[0].metrics["results"]


def test_the_time_to_go_counts_what_is_left(manifests: Path, here: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="handclip"):
        run_all(tiny_config(manifests, epochs=1), baseline_config(manifests, experiment="zero"))
    headers = [line for line in caplog.messages if line.startswith("\n[")]
    assert headers[0] == "\n[1/2] stage 1, vit_small: ce; 11k dorsal_r, seed 0"
    assert headers[1].startswith("\n[2/2] stage 0, vit_small: no training; 11k dorsal_r, seed 0 (0:00:")
    assert headers[1].endswith("about 0:00:00 of training to go)")


@pytest.mark.promise("two-processes")
def test_a_run_that_another_process_works_on_is_reported_and_the_rest_go_on(manifests: Path, here: Path) -> None:
    trained, evaluated = (
        tiny_config(manifests, experiment="one", epochs=1),
        baseline_config(manifests, experiment="two"),
    )
    free = baseline_config(manifests, experiment="three", flip_settings=["none"])
    with holding(RunFolder.of(trained).folder), holding(evaluation_folder(evaluated)):
        reports = run_all(trained, evaluated, free)
    assert [[fault.step for fault in report.faults] for report in reports] == [
        ["training"],
        ["evaluation on 11k dorsal_r"],
        [],
    ]
    for report in reports[:2]:
        assert "is being written by process" in report.faults[0].message
    assert not RunFolder.of(trained).folder.exists()


def test_a_study_is_held_while_it_runs(here: Path) -> None:
    with holding(here / "out"), pytest.raises(InUseError, match="out is being written by process"):
        run_and_compare([], here / "out", resume=True)
