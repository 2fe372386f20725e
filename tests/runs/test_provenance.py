import json
import os
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from tiny_study import load_manifest, tiny_config

from handclip import __version__
from handclip.datasets.prepare import prepare
from handclip.errors import DamagedFileError, HandCLIPError, Interrupted, TrainingError
from handclip.models.checkpoint import Checkpoint
from handclip.parallel import hardware
from handclip.parallel.hardware import describe_environment
from handclip.runs import provenance
from handclip.runs import train as training_module
from handclip.runs.evaluate import evaluate
from handclip.runs.provenance import (
    KILLED,
    content_sha256,
    read_provenance,
    run_facts,
    session,
    sessions_of,
    weights_sha256,
)
from handclip.runs.result import TrainingResult
from handclip.runs.train import train


def working_on(folder: Path, **options: Any) -> Any:
    facts = run_facts("a", "training", options.pop("config", {}), {}, 3, options.pop("weights", "f00"))
    return session(folder, facts, describe_environment(torch.device("cpu"), "float32"), **options)


def read(folder: Path) -> dict[str, Any]:
    content = read_provenance(folder)
    assert content is not None
    return content


def last(folder: Path) -> dict[str, Any]:
    return dict(read(folder)["sessions"][-1])


def test_training_and_evaluation_record_where_they_come_from(
    manifests: Path, here: Path, stage1: TrainingResult
) -> None:
    config = tiny_config(
        manifests, experiment="stage1", checkpoint=str(stage1.checkpoint), num_splits=1, explained_images=0
    )
    manifest = load_manifest(manifests).sha256
    best, final = (Checkpoint.load(path).model_state for path in (stage1.checkpoint, stage1.last_checkpoint))
    training = read(stage1.folder)
    assert (training["run"], training["kind"]) == (stage1.run, "training")
    assert training["manifest_sha256"] == {"dorsal_r": manifest}
    assert training["seeds"] == {"run": 0, "splits": {"dorsal_r": 0}}
    assert training["weights_sha256"] == weights_sha256(best)
    assert training["last_weights_sha256"] == weights_sha256(final)
    assert training["starts_from_sha256"] not in (weights_sha256(best), weights_sha256(final))
    assert training["config_sha256"] == content_sha256(yaml.safe_load((stage1.folder / "config.yml").read_text()))

    entry = last(stage1.folder)
    assert entry["exit"] == "finished"
    assert (entry["from"], entry["to"]) == ({"epochs": 0, "steps": 0}, {"epochs": 2, "steps": 4})
    assert entry["handclip"] == __version__
    assert set(entry["libraries"]) > {"torch", "open_clip_torch", "timm"}
    assert {"device", "processor", "cores", "threads", "processes", "precision"} == entry["hardware"].keys()
    assert datetime.fromisoformat(entry["started"]) <= datetime.fromisoformat(entry["ended"])
    assert entry["seconds"] >= 0

    result = evaluate(config)
    evaluation = read(result.folder)
    assert (evaluation["run"], evaluation["kind"]) == (result.run, "evaluation")
    assert evaluation["starts_from_sha256"] == result.metrics["weights_sha256"] == training["weights_sha256"]
    assert evaluation["manifest_sha256"] == {"dorsal_r": result.metrics["manifest_sha256"]}
    assert evaluation["config_sha256"] == content_sha256(yaml.safe_load((result.folder / "config.yml").read_text()))
    assert last(result.folder)["exit"] == "finished"


@pytest.mark.promise("begun-anew")
def test_what_begins_anew_records_the_data_that_it_learns_from(
    manifests: Path, hands: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was ended before its first state, whose manifest was then replaced."""
    load_manifest(manifests).save(here / "manifest.json")
    config = tiny_config(here / "manifest.json", epochs=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training_module, "fit", Mock(side_effect=KeyboardInterrupt))
        train(config)
    prepare("11k", hands, here / "other", seed=7)
    now = load_manifest(here / "other")
    now.save(here / "manifest.json")
    trained = train(config, resume=True)
    recorded = read(trained.folder)
    assert trained.manifest_sha256 == now.sha256
    assert recorded["manifest_sha256"] == {"dorsal_r": now.sha256}
    assert recorded["seeds"]["splits"] == {"dorsal_r": 7}
    assert [entry["exit"] for entry in recorded["sessions"]] == ["interrupted by SIGINT", "finished"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Interrupted(signal.SIGTERM), "interrupted by SIGTERM"),
        (Interrupted(signal.SIGINT), "interrupted by SIGINT"),
        (KeyboardInterrupt(), "interrupted by SIGINT"),
        (TrainingError("the loss is NaN"), "failed: the loss is NaN"),
        (ValueError("odd"), "failed: ValueError: odd"),
    ],
)
def test_why_it_ended_is_recorded(error: BaseException, reason: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), working_on(tmp_path) as own:
        own.reaches(epochs=3, steps=12)
        raise error
    assert last(tmp_path)["exit"] == reason
    assert last(tmp_path)["to"] == {"epochs": 3, "steps": 12}


def test_a_killed_process_is_found_by_the_next(tmp_path: Path) -> None:
    work = working_on(tmp_path)
    work.__enter__()  # and never left, as when it is killed
    entry = last(tmp_path)
    assert (entry["exit"], entry["ended"]) == (None, None)
    assert sessions_of(read(tmp_path), ended=False)[0]["exit"] is None
    assert sessions_of(read(tmp_path), ended=True)[0]["exit"] == KILLED
    with working_on(tmp_path):
        pass
    assert [entry["exit"] for entry in read(tmp_path)["sessions"]] == [KILLED, "finished"]


def test_what_goes_on_keeps_what_it_began_with(tmp_path: Path) -> None:
    with working_on(tmp_path, weights="first", config={"lr": 1}):
        pass
    with working_on(tmp_path, weights="other", config={"lr": 2}, goes_on=True):
        pass
    assert read(tmp_path)["starts_from_sha256"] == "first"
    assert read(tmp_path)["config_sha256"] == content_sha256({"lr": 1})
    with working_on(tmp_path, weights="other", config={"lr": 2}):
        pass
    assert read(tmp_path)["starts_from_sha256"] == "other"
    assert len(read(tmp_path)["sessions"]) == 3


@pytest.mark.promise("clock-set-back")
def test_a_clock_that_is_set_back_gives_no_negative_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_on(tmp_path):

        class Yesterday(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime(2020, 1, 1, tzinfo=tz)

        monkeypatch.setattr(provenance, "datetime", Yesterday)
    assert last(tmp_path)["ended"].startswith("2020-01-01")
    assert last(tmp_path)["seconds"] >= 0


@pytest.mark.promise("damaged-training")
@pytest.mark.parametrize("content", ["", "{", "[]", '{"sessions": [], "sha256": "0"}', '{"run": NaN}', "\xff"])
def test_a_damaged_record_is_named_and_kept(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "provenance.json"
    for _ in range(2):
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(DamagedFileError, match="is damaged or was changed"):
            read_provenance(tmp_path)
        with working_on(tmp_path):
            pass
    assert f"{path}: is damaged or was changed" in caplog.text
    assert f"It was moved to {tmp_path / 'provenance.damaged.json'}" in caplog.text
    for name in ("provenance.damaged.json", "provenance.damaged1.json"):
        assert (tmp_path / name).read_bytes() == content.encode("latin-1")
    assert [entry["exit"] for entry in read(tmp_path)["sessions"]] == ["finished"]


def test_an_edited_record_is_found(tmp_path: Path) -> None:
    with working_on(tmp_path):
        pass
    path = tmp_path / "provenance.json"
    path.write_text(path.read_text().replace('"run": 3', '"run": 4'))
    with pytest.raises(DamagedFileError, match="does not have the hash"):
        read_provenance(tmp_path)


def test_a_folder_that_was_removed_is_not_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with working_on(folder):
        (folder / "provenance.json").unlink()
        folder.rmdir()
    assert not folder.exists()


def test_a_full_disk_does_not_hide_why_a_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, value: Any) -> None:
        raise HandCLIPError(f"cannot write {path}: No space left on device")

    with pytest.raises(TrainingError, match="NaN"), working_on(tmp_path):
        monkeypatch.setattr(provenance, "write_json", full)
        raise TrainingError("the loss is NaN")
    assert "How this run ends is not recorded: cannot write" in caplog.text


def test_other_processes_than_the_first_record_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "is_first_process", lambda: False)
    with working_on(tmp_path) as own:
        own.note(weights_sha256="f00")
        own.reaches(epochs=1, steps=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("described", "commit", "changed"),
    [("abc", "abc", False), ("abc-changed", "abc", True), (None, None, None)],
)
def test_whether_files_differ_from_the_commit_is_recorded(
    described: str | None, commit: str | None, changed: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_commit", lambda: described)
    assert hardware.describe_code() == {"handclip": __version__, "commit": commit, "changed": changed}


def test_the_hash_of_weights_is_that_of_their_names_and_bytes() -> None:
    state = {"b": torch.ones(2), "a": torch.zeros(3)}
    hashed = weights_sha256(state)
    assert hashed == weights_sha256({name: state[name].clone() for name in ("a", "b")})
    assert hashed != weights_sha256({**state, "a": torch.tensor([0.0, 0.0, 1e-45])})
    assert hashed != weights_sha256({"b": torch.ones(2), "c": torch.zeros(3)})


def test_the_hash_of_content_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    content = {"b": [1, 2.5, None], "a": {"ü": True}}
    assert content_sha256(content) == content_sha256(json.loads(json.dumps(content, sort_keys=True)))
    assert content_sha256(content) != content_sha256({**content, "b": [2.5, 1, None]})


def test_a_command_that_is_no_text_is_recorded_with_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["handclip", os.fsdecode(b"caf\xe9/\xc3\xbc.yml")])
    with working_on(tmp_path):
        pass
    assert last(tmp_path)["command"] == ["handclip", "caf\\udce9/ü.yml"]


def test_what_is_to_be_replaced_keeps_its_facts_until_it_is(tmp_path: Path) -> None:
    with working_on(tmp_path, weights="old"):
        pass
    before = {name: value for name, value in read(tmp_path).items() if name != "sessions"}
    with pytest.raises(Interrupted), working_on(tmp_path, weights="new", replaces=True):
        assert read(tmp_path).items() >= before.items()
        raise Interrupted(signal.SIGTERM)
    assert read(tmp_path).items() >= before.items()
    assert last(tmp_path)["exit"] == "interrupted by SIGTERM"
    (tmp_path / "new").mkdir()
    with working_on(tmp_path, weights="new", replaces=True) as own:
        own.write_successor(tmp_path / "new", starts_from_sha256="new")
        assert read(tmp_path)["starts_from_sha256"] == "old"
        assert len(read(tmp_path / "new")["sessions"]) == 3
        own.note(starts_from_sha256="new")
    assert read(tmp_path)["starts_from_sha256"] == read(tmp_path / "new")["starts_from_sha256"] == "new"
