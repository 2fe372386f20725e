"""Every kind of tampering with a run is found and named."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audited_study import SMALL, Copy, audited, edit, faults, found, seal
from tiny_study import baseline_config, load_manifest

from handclip.audit import AuditResult, Finding, Outcome, audit
from handclip.checksums import read_checksums, sha256_of, write_checksums
from handclip.csv_files import csv_rows, csv_text
from handclip.errors import HandCLIPError, Interrupted
from handclip.file_names import CHECKSUMS
from handclip.locks import holding
from handclip.models.checkpoint import Checkpoint
from handclip.retrieval import evaluation as retrieval_module
from handclip.runs.artifacts import KeptFeatures, read_features, write_features
from handclip.runs.evaluate import evaluate


def test_untouched_runs_match_in_everything(original: Path) -> None:
    audits = audit([original])
    assert {one.kind for one in audits} == {"evaluation", "training", "checkpoint"}
    for one in audits:
        assert one.holds, one
        assert {finding.outcome for finding in one.findings} <= {Outcome.MATCHES, Outcome.NOTE}, one
    evaluation = next(one for one in audits if one.kind == "evaluation")
    what = {finding.what for finding in evaluation.findings}
    assert {"metrics.json: gallery, flip none", "metrics.json: gallery_all, flip none", "features.safetensors"} <= what
    assert {"per_query.csv", "config.yml", "images of manifest_dorsal_r.json", "metrics.json: weights_sha256"} <= what


FILES = ["metrics.json", "per_query.csv", "per_split.csv", "features.safetensors", "cost.json", "config.yml"]


@pytest.mark.parametrize("name", [*FILES, "manifest_dorsal_r.json"])
@pytest.mark.parametrize("damage", ["flipped", "emptied", "gone"])
def test_a_damaged_file_is_named(name: str, damage: str, copy: Copy) -> None:
    path = copy.evaluation / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content) if damage == "flipped" else b"")
    result = audited(copy.evaluation)
    assert not result.holds
    assert faults(result)[name].outcome == (Outcome.GONE if damage == "gone" else Outcome.DIFFERS)


@pytest.mark.promise("tampering-new-list")
def test_an_edited_number_is_named_behind_a_list_by_another_program(copy: Copy) -> None:
    names = read_checksums(copy.evaluation) or {}
    edit(copy.evaluation / "metrics.json", "results.1.splits.0.map", 0.99)
    assert list(faults(audited(copy.evaluation))) == ["metrics.json: gallery_all, flip none"]
    listed = [f"{sha256_of(copy.evaluation / name)}  {name}\n" for name in names]
    (copy.evaluation / CHECKSUMS).write_text("".join(listed))
    found = faults(audited(copy.evaluation))
    assert list(found) == [CHECKSUMS, "metrics.json: gallery_all, flip none"]
    assert "its last line does not hold the hash of those above" in found[CHECKSUMS].found
    assert "splits[0].map: 0.99 is recorded" in found["metrics.json: gallery_all, flip none"].found
    # What such a list cannot vouch for is counted.
    unchecked = {one.what: one.found for one in audited(copy.evaluation).findings if one.outcome == Outcome.NOT_CHECKED}
    assert set(names) - {"provenance.json"} <= unchecked.keys()
    assert unchecked["per_query.csv"] == "its hash, as SHA256SUMS is not sound"


LISTED = {"evaluation": ("cost.json", "attributes.csv"), "training": ("environment.json", "result.json")}


@pytest.mark.promise("tampering-list")
@pytest.mark.parametrize("kind", ["evaluation", "training"])
def test_a_file_that_is_taken_off_the_list_is_named(kind: str, copy: Copy) -> None:
    folder, names = getattr(copy, kind), LISTED[kind]
    listed = read_checksums(folder) or {}
    write_checksums(folder, listed.keys() - set(names))
    found = faults(audited(folder))
    assert found.keys() == set(names)
    for name in names:
        assert found[name].outcome == Outcome.DIFFERS
        assert found[name].found.startswith("SHA256SUMS does not list it, as a run that has ended does: somebody took ")
    (folder / names[0]).unlink()
    assert faults(audited(folder))[names[0]].outcome == Outcome.GONE


def test_numbers_that_cannot_be_recomputed_are_counted(copy: Copy) -> None:
    features = copy.evaluation / "features.safetensors"
    features.write_bytes(features.read_bytes()[:-99])
    result = audited(copy.evaluation)
    assert {"features.safetensors", "numbers"} <= faults(result).keys()
    unchecked = {one.what for one in result.findings if one.outcome == Outcome.NOT_CHECKED}
    assert {f"{name}: numbers" for name in ("metrics.json", "per_split.csv", "per_query.csv")} <= unchecked


@pytest.mark.parametrize(("column", "value"), [("rank", "9"), ("name", "somebody")])
def test_an_edited_query_is_found_though_all_checksums_were_made_anew(column: str, value: str, copy: Copy) -> None:
    path = copy.evaluation / "per_query.csv"
    with path.open(newline="") as file:
        header, first, *rest = csv_rows(file)
    edited = [value if name == column else cell for name, cell in zip(header, first, strict=True)]
    path.write_text(csv_text([header, edited, *rest]), newline="")
    seal(copy.evaluation)
    said = f"line 2.{column}: {value} is recorded, recomputed {first[header.index(column)]}"
    found = faults(audited(copy.evaluation))
    assert (list(found), found["per_query.csv"].found) == (["per_query.csv"], said)


def test_features_of_another_run_or_of_other_images_are_found(copy: Copy) -> None:
    kept = read_features(copy.evaluation)
    random = np.random.default_rng(0)
    others = {flip: random.normal(size=rows.shape).astype(np.float32) for flip, rows in kept.by_flip.items()}
    write_features(copy.evaluation, KeptFeatures(kept.sha256, others))
    numbers = {"metrics.json: gallery, flip none", "per_query.csv"}
    assert {"features.safetensors", *numbers} <= faults(audited(copy.evaluation)).keys()
    seal(copy.evaluation)
    assert numbers <= faults(audited(copy.evaluation)).keys()
    write_features(copy.evaluation, KeptFeatures([*kept.sha256[1:], kept.sha256[0]], kept.by_flip))
    seal(copy.evaluation)
    assert "is not of the images" in faults(audited(copy.evaluation))["numbers"].found


def test_another_manifest_in_its_place_is_found(copy: Copy) -> None:
    path = copy.evaluation / "manifest_dorsal_r.json"
    replace(load_manifest(copy.evaluation), seed=5).save(path)
    seal(copy.evaluation)
    assert faults(audited(copy.evaluation)).keys() == {
        "metrics.json: manifest_sha256",
        "metrics.json: identity",
        "provenance.json: manifest_sha256",
    }


def test_an_edited_config_or_provenance_is_found_by_its_hash(copy: Copy) -> None:
    path = copy.evaluation / "config.yml"
    path.write_text(path.read_text().replace("eval_batch_size: 64", "eval_batch_size: 65"))
    edit(copy.training / "provenance.json", "seeds.run", 9)
    seal(copy.evaluation)
    assert "config hash" in faults(audited(copy.evaluation))["config.yml"].found
    assert "does not have the hash that it records" in faults(audited(copy.training))["provenance.json"].found


def test_another_checkpoint_in_its_place_is_found(copy: Copy) -> None:
    checkpoint = Checkpoint.load(copy.checkpoint)
    state = {name: value + 1e-4 if "proj" in name else value for name, value in checkpoint.model_state.items()}
    replace(checkpoint, model_state=state).save(copy.checkpoint)
    assert faults(audited(copy.evaluation)).keys() == {"metrics.json: weights_sha256"}
    found = faults(audited(copy.training))
    assert found.keys() == {"result.json: checkpoint_sha256", "provenance.json: weights_sha256"}


def test_a_flipped_bit_in_a_checkpoint_is_found(copy: Copy) -> None:
    content = torch.load(copy.checkpoint, weights_only=True)
    content["metrics"]["val_map"] = 0.999
    copy.checkpoint.unlink()
    torch.save(content, copy.checkpoint)
    assert copy.checkpoint.name in faults(audited(copy.checkpoint))
    assert "checkpoint" in faults(audited(copy.training))


@pytest.mark.promise("tampering-data")
def test_data_that_were_replaced_under_a_training_are_found(copy: Copy) -> None:
    began = {"dorsal_r": "0123456789ab" + 52 * "0"}
    copy.seal_provenance(copy.training, manifest_sha256=began)
    fault = faults(audited(copy.training))
    ended = load_manifest(copy.evaluation).sha256[:12]
    assert list(fault) == ["provenance.json: manifest_sha256"]
    sentence = f"the run began with manifest 0123456789ab, but result.json says {ended}"
    assert fault["provenance.json: manifest_sha256"].found == sentence


@pytest.mark.parametrize("key", ["best_epoch", "epochs", "manifest_sha256"])
def test_an_edited_result_of_training_is_found(key: str, copy: Copy) -> None:
    edit(copy.training / "result.json", key, 9)
    assert faults(audited(copy.training)) != {}


def test_an_edited_epoch_is_found(copy: Copy) -> None:
    path = copy.training / "metrics.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    seal(copy.training)
    fault = faults(audited(copy.training))["metrics.csv"]
    assert fault.found.startswith("epochs: 2 is recorded, recomputed 1")


def test_changed_and_missing_images_are_counted(copy: Copy, hands: Path, tmp_path: Path) -> None:
    shutil.copytree(hands, own := tmp_path / "hands")
    path = tmp_path / "manifest_dorsal_r.json"
    manifest = replace(load_manifest(copy.evaluation), root=own)
    manifest.save(path)
    assert found(audited(path, images=True), f"images of {path.name}").outcome == Outcome.MATCHES
    changed = manifest.path_of(3)
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    fault = faults(audited(path, images=True))[f"images of {path.name}"]
    assert fault.outcome == Outcome.DIFFERS
    assert fault.found.startswith("1 of ") and manifest.images[3].path in fault.found
    manifest.path_of(4).unlink()
    assert faults(audited(path, images=True))[f"images of {path.name}"].outcome == Outcome.GONE
    assert found(audited(path), f"images of {path.name}").outcome == Outcome.NOT_CHECKED
    shutil.rmtree(own)
    assert found(audited(path, images=True), f"images of {path.name}").outcome == Outcome.NOT_CHECKED


def test_a_manifest_that_breaks_the_protocol_is_named(manifests: Path, tmp_path: Path) -> None:
    manifest = load_manifest(manifests)
    replace(manifest, train=(*manifest.train, manifest.test[0])).save(path := tmp_path / "manifest.json")
    assert "train and test share 1 identities" in faults(audited(path))["protocol"].found


def test_a_run_that_is_being_written_is_not_judged(copy: Copy) -> None:
    (copy.evaluation / "metrics.json").unlink()
    with holding(copy.evaluation):
        result = audited(copy.evaluation)
    assert result.holds and not result.checked
    assert result.to_dict()["holds"] is None
    assert result.to_dict()["counts"] == {"matches": 0, "differs": 0, "gone": 0, "not checked": 1, "note": 0}
    assert [one.outcome for one in result.findings] == [Outcome.NOT_CHECKED]
    assert "another process is writing" in result.findings[0].found
    assert faults(audited(copy.evaluation))["metrics.json"].outcome == Outcome.GONE


def test_a_killed_session_is_said(copy: Copy) -> None:
    content = json.loads((copy.training / "provenance.json").read_text())
    session = {**content["sessions"][-1], "ended": None, "exit": None}
    copy.seal_provenance(copy.training, sessions=[session])
    result = audited(copy.training)
    assert result.holds
    assert "killed (no end was recorded)" in found(result, "last session").found


def test_other_code_is_a_note(copy: Copy) -> None:
    content = json.loads((copy.training / "provenance.json").read_text())
    session = {**content["sessions"][-1], "handclip": "0.0.1", "commit": "123456789abc", "changed": True}
    copy.seal_provenance(copy.training, sessions=[session])
    result = audited(copy.training)
    assert result.holds
    sentence = found(result, "code").found
    made = "It was made by HandCLIP 0.0.1, commit 123456789abc with changes"
    assert sentence == f"{made}, which may be other code than this."
    # All sessions of a training have made it.
    earlier = {**session, "exit": "interrupted by SIGINT", "commit": "cba987654321", "changed": False}
    copy.seal_provenance(copy.training, sessions=[earlier, session, session])
    sentence = found(audited(copy.training), "code").found
    assert sentence.startswith("It was made by HandCLIP 0.0.1, commit cba987654321 and HandCLIP 0.0.1, commit 1234567")


@pytest.mark.promise("tampering-removed")
@pytest.mark.parametrize("names", [(CHECKSUMS,), ("provenance.json",), (CHECKSUMS, "provenance.json")])
@pytest.mark.parametrize("kind", ["evaluation", "training"])
def test_it_is_not_enough_to_remove_what_vouches_for_the_files(kind: str, names: tuple[str, ...], copy: Copy) -> None:
    folder = getattr(copy, kind)
    for name in names:
        (folder / name).unlink()
    found = faults(audited(folder))
    assert list(found) == list(names)
    for name in names:
        assert found[name].outcome == Outcome.GONE
        assert found[name].found.startswith("not there, although this version writes it: somebody removed it, or ")


def test_an_interrupted_evaluation_has_written_nothing_to_differ_from(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(retrieval_module, "embed_images", interrupted)
        evaluate(baseline_config(manifests, **SMALL))
    [folder] = here.glob("eval_logs/*")
    assert list(faults(audited(folder))) == ["metrics.json"]
    assert found(audited(folder), "config.yml").outcome == Outcome.NOT_CHECKED
    evaluate(baseline_config(manifests, **SMALL))
    result = audited(folder)
    assert result.holds
    assert "the baseline, built anew" in found(result, "metrics.json: weights_sha256").found
    # What was there stays until another takes its place.
    monkeypatch.setattr(retrieval_module, "embed_images", interrupted)
    with pytest.raises(Interrupted):
        evaluate(baseline_config(manifests, **SMALL, eval_batch_size=1), overwrite=True)
    result = audited(folder)
    assert result.holds, faults(result)
    assert "interrupted by SIGINT" in found(result, "last session").found


def test_training_that_has_not_ended_says_what_it_goes_on_from(copy: Copy) -> None:
    (copy.training / "result.json").unlink()
    write_checksums(copy.training, ["config.yml"])
    result = audited(copy.training)
    assert result.holds
    assert "training has not ended" in found(result, "result.json").found
    for state in (copy.training / "checkpoints").iterdir():
        state.unlink()
        state.write_bytes(b"")
    assert "checkpoints" in faults(audited(copy.training))


@pytest.mark.parametrize("content", ["[]", "{}", '{"results": 3}', "null"])
def test_metrics_of_another_form_are_a_finding(content: str, copy: Copy) -> None:
    (copy.evaluation / "metrics.json").write_text(content)
    assert not audited(copy.evaluation).holds


def study_of(place: Path, *entries: dict[str, Any]) -> AuditResult:
    run = {"run": "a", "state": "done", "checkpoint": None, "evaluations": []}
    (place / "study.json").write_text(json.dumps([{**run, **entry} for entry in entries]))
    return next(one for one in audit([place], images=False) if one.kind == "study")


def test_a_study_names_runs_that_are_gone(copy: Copy) -> None:
    here = {"evaluations": [f"old/eval_logs/{copy.evaluation.name}"]}
    study = study_of(copy.study, here)
    assert study.holds and study.checked
    assert [(one.outcome, one.found) for one in study.findings] == [
        (Outcome.MATCHES, "the checkpoints and evaluations of its done runs are there"),
        (Outcome.NOTE, "1 run: 1 done"),
    ]
    study = study_of(copy.study, here, {"run": "b", "evaluations": ["eval_logs/lost"]})
    assert faults(study)["b"].found == "study.json says that it is done, but eval_logs/lost is not there"
    assert study.findings[-1] == Finding("study.json", Outcome.NOTE, "2 runs: 2 done")
    assert not study.counts[Outcome.MATCHES]
    # Without its models it is no fault of its own.
    named = f"elsewhere/models/{copy.checkpoint.name}"
    said = f"study.json says that it is done, but {named} is not"
    study = study_of(copy.study, {**here, "checkpoint": named})
    assert study.holds
    assert study.findings[0] == Finding("a", Outcome.NOT_CHECKED, f"{said} here, nor is its folder")
    (copy.study / "models").mkdir()
    assert faults(study_of(copy.study, {**here, "checkpoint": named}))["a"].found == f"{said} there"
    study = study_of(copy.study, {"state": "failed"}, {"state": "to do"})
    assert study.holds and not study.checked
    assert [one.found for one in study.findings] == ["no run of it is done", "2 runs: 1 failed, 1 to do"]


def test_what_cannot_be_verified_is_refused(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    for path, sentence in (
        (tmp_path / "empty", "holds nothing to audit"),
        (tmp_path / "notes.txt", "holds nothing to audit"),
        (tmp_path / "none", "no such file or folder"),
    ):
        with pytest.raises(HandCLIPError, match=sentence):
            audit([path])
    with pytest.raises(HandCLIPError, match="is named twice"):
        audit([copy.evaluation, copy.study])
