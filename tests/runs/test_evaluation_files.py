"""The folder of an evaluation: used again, replaced, damaged, interrupted, held by another process."""

import errno
import hashlib
import json
import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import baseline_config, metrics_without_time, tiny_config

from handclip.checksums import read_checksums, write_checksums
from handclip.errors import HandCLIPError, Interrupted, InUseError
from handclip.interruption import interruptible
from handclip.locks import holding
from handclip.models.checkpoint import Checkpoint
from handclip.retrieval import evaluation as retrieval_module
from handclip.runs import evaluate as evaluation_module
from handclip.runs.artifacts import read_explanations
from handclip.runs.earlier_evaluation import earlier_metrics
from handclip.runs.evaluate import Evaluation, evaluate, evaluation_folder
from handclip.runs.evaluation_spec import find_evaluation_spec
from handclip.runs.provenance import read_provenance
from handclip.runs.result import TrainingResult
from handclip.runs.study_evaluations import evaluations_there
from handclip.runs.train import train

SMALL = {"flip_settings": ["none"], "num_splits": 1, "explained_images": 0}
OTHER = {**SMALL, "flip_settings": ["sum"]}
TIMED = ("metrics.json", "cost.json", "environment.json", "provenance.json", "SHA256SUMS")
"""What differs from one evaluation to the next."""


def stage1_config(manifests: Path, stage1: TrainingResult, **changes: Any) -> Any:
    return tiny_config(manifests, experiment="stage1", checkpoint=str(stage1.checkpoint), **changes)


def contents(folder: Path, *but: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (*but, "provenance.json")}


def is_whole(folder: Path) -> bool:
    """Whether the list of checksums is that of all files, but for the provenance."""
    found = {name: hashlib.sha256(data).hexdigest() for name, data in contents(folder, "SHA256SUMS").items()}
    return read_checksums(folder) == found


def facts_of(folder: Path) -> dict[str, Any]:
    return {name: value for name, value in (read_provenance(folder) or {}).items() if name != "sessions"}


def test_d46_evaluating_again_writes_the_same_files(manifests: Path, here: Path, stage1: TrainingResult) -> None:
    config = stage1_config(manifests, stage1)
    folder = evaluate(config).folder
    first = contents(folder, *TIMED), metrics_without_time(folder / "metrics.json")
    kept = ("features.safetensors", "explanations.safetensors", "attributes.csv", "manifest_dorsal_r.json")
    assert first[0].keys() == {"per_split.csv", "per_query.csv", "config.yml", *kept}
    assert {path.name for path in folder.iterdir()} == {*first[0], *TIMED}
    evaluate(config)
    assert (contents(folder, *TIMED), metrics_without_time(folder / "metrics.json")) == first
    evaluate(config.model_copy(update={"num_workers": 1}))
    del first[0]["config.yml"]
    assert (contents(folder, *TIMED, "config.yml"), metrics_without_time(folder / "metrics.json")) == first


def test_d46_other_weights_or_settings_do_not_replace_an_evaluation(
    manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    evaluate(stage1_config(manifests, stage1))
    [path] = here.rglob("metrics.json")
    before = path.read_bytes()
    checkpoint = Checkpoint.load(stage1.checkpoint)
    assert json.loads(before)["preprocessing"] == checkpoint.preprocessing
    # Under the same name, other weights, and the same with another preprocessing.
    state = {key: value + 0.01 if value.is_floating_point() else value for key, value in checkpoint.model_state.items()}
    replace(checkpoint, model_state=state).save(here / "weights.pth")
    half = {**checkpoint.preprocessing, "mean": [0.5, 0.5, 0.5]}
    replace(checkpoint, preprocessing=half).save(here / "input.pth")
    for change, key in (
        ({"checkpoint": here / "weights.pth"}, "weights_sha256: .*"),
        ({"checkpoint": here / "input.pth"}, r"mean: \[0\.48145466, .*, not \[0\.5, 0\.5, 0\.5\]"),
        ({"num_splits": 2}, "num_splits: 3, not 2"),
        ({"flip_settings": ("none",)}, r"flip_settings: \['none', 'sum'\], not \['none'\]"),
    ):
        config = stage1_config(manifests, stage1).model_copy(update=change)
        with pytest.raises(HandCLIPError, match=rf"holds an evaluation with {key}\. Add --overwrite to replace it"):
            evaluate(config)
        assert path.read_bytes() == before
    evaluate(config, overwrite=True)
    assert path.read_bytes() != before


def test_the_same_weights_are_the_same_model_wherever_they_lie(
    manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    first = evaluate(stage1_config(manifests, stage1))
    (here / "moved.pth").write_bytes(stage1.checkpoint.read_bytes())
    moved = stage1_config(manifests, stage1).model_copy(update={"checkpoint": here / "moved.pth"})
    assert evaluate(moved, reuse=True) == first
    again = evaluate(moved)
    assert again.metrics["checkpoint"] == str(here / "moved.pth")
    different = {key for key in first.metrics if again.metrics[key] != first.metrics[key]}
    assert different <= {"checkpoint", "seconds"}


def test_an_evaluation_that_was_done_is_reused_when_asked(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(baseline_config(manifests, **SMALL))
    (first.folder / ".together.01234567.part").mkdir()  # killed in the moment between its last file and its end
    (first.folder / ".provenance.json.01234567.part").touch()
    monkeypatch.setattr(retrieval_module, "embed_images", None)
    assert evaluate(baseline_config(manifests, **SMALL), reuse=True) == first
    assert not list(first.folder.glob("*.part"))


@pytest.mark.promise("evaluation-other-photographs")
@pytest.mark.parametrize(("before", "now"), [(1, 0), (0, 1)])
def test_photographs_that_are_kept_are_as_many_as_asked_for(
    before: int, now: int, manifests: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "handclip")
    small = baseline_config(manifests, **{**SMALL, "explained_images": before})
    folder = evaluate(small).folder
    asked = small.model_copy(update={"explained_images": now})
    again = evaluate(asked, reuse=True)
    assert not again.was_there
    assert len(read_explanations(folder)) == now
    said = f"{folder} was made with explained_images: {before}, not {now}, so it is evaluated again."
    assert caplog.messages.count(said) == 1
    harmless = asked.model_copy(update={"eval_batch_size": 7, "pixel_cache_gib": 0.0})
    assert evaluate(harmless, reuse=True).was_there


@pytest.mark.promise("evaluation-on-read-only-disk")
def test_an_evaluation_that_is_there_is_shown_from_where_nothing_can_be_written(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = baseline_config(manifests, **SMALL)
    first = evaluate(config)
    monkeypatch.setattr("handclip.files.os.access", lambda *_: False)
    assert evaluate(config, reuse=True) == first
    for options in ({}, {"overwrite": True}, {"overwrite": True, "reuse": True}):
        with pytest.raises(HandCLIPError, match=r"cannot write eval_logs/\S+: eval_logs/\S+ is read-only"):
            evaluate(config, **options)
    (first.folder / "per_query.csv").unlink()
    with pytest.raises(HandCLIPError, match="is read-only"):
        evaluate(config, reuse=True)


@pytest.mark.promise("disk-full-writing")
@pytest.mark.parametrize("fits", [0, 5, 11])
def test_an_evaluation_that_is_to_be_replaced_stays_until_the_new_one_is_whole(
    fits: int, manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full after some of the twelve files, the last of which is the new provenance."""
    other = baseline_config(manifests, **OTHER)
    folder = evaluate(baseline_config(manifests, **SMALL)).folder
    before, facts = contents(folder), facts_of(folder)
    written: list[str] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.parent.suffix == ".part" and path.is_file():
            if len(written) == fits:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(path.name)
        sync(descriptor)

    with monkeypatch.context() as disk, pytest.raises(HandCLIPError) as caught:
        disk.setattr("handclip.files.os.fsync", fsync)
        evaluate(other, overwrite=True)
    assert str(caught.value).startswith(f"cannot write {folder}/")
    assert str(caught.value).endswith(": No space left on device")
    assert len(written) == fits
    assert contents(folder) == before
    assert facts_of(folder) == facts
    assert (read_provenance(folder) or {})["sessions"][-1]["exit"].startswith("failed: cannot write")
    evaluate(other, overwrite=True)
    assert facts_of(folder)["config_sha256"] != facts["config_sha256"]
    assert is_whole(folder)
    assert [entry["exit"] for entry in (read_provenance(folder) or {})["sessions"]][::2] == ["finished", "finished"]


def test_a_signal_while_files_get_their_names_waits_until_all_have_them(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = evaluate(baseline_config(manifests, **SMALL)).folder
    before = facts_of(folder)
    rename = Path.replace

    def replace_and_interrupt(self: Path, target: Path) -> Path:
        if Path(target) == folder / "cost.json":
            os.kill(os.getpid(), signal.SIGTERM)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace_and_interrupt)
    with pytest.raises(Interrupted), interruptible():
        evaluate(baseline_config(manifests, **OTHER), overwrite=True)
    assert is_whole(folder)
    after = read_provenance(folder) or {}
    assert after["config_sha256"] != before["config_sha256"]
    assert after["sessions"][-1]["exit"] == "interrupted by SIGTERM"
    assert not list(here.rglob("*.part"))


def test_metrics_never_stand_beside_the_tables_of_another_evaluation(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = evaluate(baseline_config(manifests, **SMALL)).folder
    rename = Path.replace

    def replace_or_fail(self: Path, target: Path) -> Path:
        if Path(target) == folder / "per_query.csv":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace_or_fail)
    with pytest.raises(HandCLIPError, match=f"cannot write {folder}: Input/output error"):
        evaluate(baseline_config(manifests, **OTHER), overwrite=True)
    assert not (folder / "metrics.json").exists()
    assert not (folder / "SHA256SUMS").exists()


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
        return
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "empty":
        content.clear()
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.promise("damaged-evaluation")
def test_a_damaged_evaluation_is_named_and_not_used_again(
    manifests: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every file, with every damage."""
    config = baseline_config(manifests, **SMALL)
    first = evaluate(config)
    folder, kept = first.folder, contents(first.folder)
    spec = find_evaluation_spec(config)
    assert earlier_metrics(spec, reuse=True)
    for name in sorted(kept):
        for how in ("truncated", "empty", "bit-flipped", "gone"):
            damage(folder / name, how)
            caplog.clear()
            assert earlier_metrics(spec, reuse=True) is None
            if (name, how) != ("metrics.json", "gone"):  # which looks as if nothing had been evaluated
                assert (f"lacks {name}" if how == "gone" else f"{folder / name}: is damaged") in caplog.text, (
                    name,
                    how,
                )
                assert "so it is evaluated again" in caplog.text
            (folder / name).write_bytes(kept[name])
    assert earlier_metrics(spec, reuse=True)
    for how in ("bit-flipped", "gone"):
        damage(folder / "features.safetensors", how)
        assert {**evaluate(config, reuse=True).metrics, "seconds": 0} == {**first.metrics, "seconds": 0}
        assert contents(folder, *TIMED) == {name: data for name, data in kept.items() if name not in TIMED}
        assert is_whole(folder)


def test_damaged_metrics_do_not_keep_a_run_from_being_evaluated(
    manifests: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = baseline_config(manifests, **SMALL)
    folder = evaluate(config).folder
    damage(folder / "metrics.json", "truncated")
    assert evaluate(config).folder == folder
    assert f"{folder / 'metrics.json'}: is damaged or was changed" in caplog.text
    # Neither does what one that was cut short has left of the same evaluation ...
    (folder / "SHA256SUMS").unlink()
    evaluate(config)
    # ... but another one that nothing is wrong with stays.
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(HandCLIPError, match="holds an evaluation with num_splits"):
        evaluate(config.model_copy(update={"num_splits": 2}))


@pytest.mark.promise("killed")
def test_an_evaluation_that_was_killed_is_made_again_with_the_same_bytes(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before and after each file gets its name: in between there is nothing to see."""
    config = baseline_config(manifests, **{**SMALL, "explained_images": 1})
    whole = evaluate(config).folder
    expected = contents(whole, *TIMED)
    metrics = metrics_without_time(whole / "metrics.json")
    environment = evaluation_module.describe_environment(torch.device("cpu"), "float32")
    monkeypatch.setattr(evaluation_module, "describe_environment", lambda *_: environment)  # it takes half of the time
    rename = Path.replace
    killed = 0
    for moment in range(0, 21, 5):  # each in the folder that the one before it has left
        names: list[str] = []

        def replace_or_die(self: Path, target: Path, moment: int = moment, names: list[str] = names) -> Path:
            if Path(target).parent != whole or Path(target).name == "provenance.json":
                return rename(self, target)
            if len(names) * 2 == moment:
                raise Killed
            names.append(Path(target).name)
            rename(self, target)
            if len(names) * 2 - 1 == moment:
                raise Killed
            return target

        monkeypatch.setattr(Path, "replace", replace_or_die)
        with suppress(Killed):
            evaluate(config)
            continue
        killed += 1
        monkeypatch.setattr(Path, "replace", rename)
        assert not (whole / "SHA256SUMS").exists()
    assert killed == 5
    monkeypatch.setattr(Path, "replace", rename)
    evaluate(config, reuse=True)
    assert contents(whole, *TIMED) == expected
    assert metrics_without_time(whole / "metrics.json") == metrics
    assert is_whole(whole)


class Killed(BaseException):
    """What nothing that deals with errors stops, as SIGKILL."""


def test_a_second_process_is_told_that_the_evaluation_is_under_way(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = baseline_config(manifests, **SMALL)
    measure, told = evaluation_module.retrieve, []

    def measure_while_another_tries(*arguments: Any) -> Evaluation:
        with pytest.raises(InUseError, match=rf"eval_logs/{run}\S* is being written by process \d+") as refused:
            evaluate(config)
        told.append(refused)
        return measure(*arguments)

    run = "tiny_vit_small"
    monkeypatch.setattr(evaluation_module, "retrieve", measure_while_another_tries)
    assert is_whole(evaluate(config).folder)
    assert len(told) == 1


@pytest.mark.promise("evaluation-before-the-end")
def test_evaluating_a_run_that_has_not_ended_is_said(
    manifests: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it has, an evaluation of its earlier model is made again, as by a study, which has no --overwrite."""
    caplog.set_level("INFO", "handclip")
    config = tiny_config(manifests, epochs=2)
    train(config, stop_after=1)
    before = evaluate(config)
    assert "Training of this run has not ended" in caplog.text
    assert (before.metrics["training_ended"], before.metrics["trained_epochs"]) == (False, 1)
    caplog.clear()
    train(config, resume=True)
    path = before.folder / "metrics.json"
    path.write_text(json.dumps({**before.metrics, "weights_sha256": "0" * 64}))  # as if its best were another now
    write_checksums(before.folder, read_checksums(before.folder) or ())
    assert evaluations_there(config, []) == [None]
    with pytest.raises(HandCLIPError, match="holds the evaluation of an earlier model of this run, made before its"):
        evaluate(config)
    after = evaluate(config, reuse=True)
    assert "was made before training had ended, so it is evaluated again" in caplog.text
    assert after.metrics["training_ended"] is True and not after.was_there
    assert evaluations_there(config, []) == [after.folder]
    assert "Training of this run has not ended" not in caplog.text


@pytest.mark.promise("evaluation-before-the-end")
def test_an_evaluation_before_training_had_ended_is_not_used_again(
    manifests: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where the best model has stayed the same."""
    caplog.set_level("INFO", "handclip")
    config = tiny_config(manifests, epochs=2, validation_interval=2)
    train(config)
    (result,) = here.glob("train_logs/*/result.json")
    result.rename(here / "aside.json")
    before = evaluate(config, reuse=True)
    assert evaluate(config, reuse=True).was_there
    (here / "aside.json").rename(result)
    after = evaluate(config, reuse=True)
    assert "was made before training had ended, so it is evaluated again" in caplog.text
    assert (before.metrics["training_ended"], after.metrics["training_ended"]) == (False, True)
    assert before.metrics["results"] == after.metrics["results"]
    assert evaluate(config, reuse=True).was_there


@pytest.mark.promise("two-processes-other-checkpoint")
def test_another_runs_checkpoint_can_be_evaluated_while_the_configs_own_evaluation_is_written(
    manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    config = tiny_config(manifests, experiment="own", checkpoint=str(stage1.checkpoint), **SMALL)
    with holding(evaluation_folder(config)):
        evaluation = evaluate(config)
    assert evaluation.run == stage1.run != evaluation_folder(config).name
    with holding(evaluation.folder), pytest.raises(InUseError, match=f"{stage1.run} is being written by process"):
        evaluate(config, overwrite=True)


@pytest.mark.promise("folder-for-file")
@pytest.mark.parametrize("name", ["per_query.csv", "SHA256SUMS"])
def test_a_folder_in_place_of_a_file_is_named_before_anything_is_computed(
    name: str, manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = baseline_config(manifests)
    folder = evaluation_folder(config)
    (folder / name).mkdir(parents=True)
    monkeypatch.setattr(evaluation_module, "retrieve", lambda *_: pytest.fail("it was computed"))
    with pytest.raises(HandCLIPError, match=rf"^cannot write .*/{name}: there is a folder of that name\. Move it away"):
        evaluate(config)
