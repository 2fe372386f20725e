"""`handclip audit` and `handclip doctor`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Handclip
from tiny_study import baseline_config, load_manifest

from handclip import doctor
from handclip.doctor import Check
from handclip.locks import holding
from handclip.models.builder import build_model
from handclip.runs.evaluate import evaluate


def test_audit_prints_a_table_and_fails_where_something_differs(
    handclip: Handclip, manifests: Path, here: Path
) -> None:
    folder = evaluate(baseline_config(manifests, num_splits=1, flip_settings=["none"], explained_images=0)).folder
    answer = handclip.ok("audit", folder)
    assert "1 checked: all that could be checked matches." in answer.out
    assert "metrics.json: gallery, flip none" not in answer.out
    everything = handclip("audit", folder, "--all").out
    assert "metrics.json: gallery, flip none" in everything
    matches = everything.count(" matches ")
    assert f"evaluation {folder}: {matches} match\n" in answer.out and f"{folder}: {matches} match\n" in everything
    assert answer.out.splitlines()[-1] == f"{matches} match, 0 differ, 0 gone, 0 not checked"

    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["results"][0]["mean"]["rank1"] = 0.999
    (folder / "metrics.json").write_text(json.dumps(metrics))
    answer = handclip("audit", folder, "--no-images")
    assert answer.code == 1
    assert "mean.rank1: 0.999 is recorded, recomputed" in " ".join(answer.out.split())
    assert f"1 no longer as recorded: {folder}" in answer.out
    assert " matches " not in answer.out
    unread = "images of manifest_dorsal_r.json: --no-images was given"
    assert answer.out.splitlines()[-1].endswith(f" 2 differ, 0 gone, 1 not checked: {unread}")

    answer = handclip("audit", "eval_logs", "--json")
    assert answer.code == 1
    (found,) = json.loads(answer.out)
    assert (found["place"], found["kind"], found["holds"]) == (str(folder), "evaluation", False)
    assert {"what", "outcome", "found"} == found["findings"][0].keys()
    assert {finding["outcome"] for finding in found["findings"]} >= {"matches", "differs"}
    assert found["counts"]["differs"] == 2 and found["counts"]["matches"] > 10


@pytest.mark.promise("run-under-way")
def test_a_run_under_way_is_not_taken_for_audited(handclip: Handclip, manifests: Path, here: Path) -> None:
    for seed in (0, 1):
        manifest = replace(load_manifest(manifests), seed=seed)
        (here / f"{seed}").mkdir()
        manifest.save(here / f"{seed}" / "manifest_dorsal_r.json")
    busy = here / "1" / "manifest_dorsal_r.json"
    reason = f"{busy.name}: another process is writing to it now; audit it when it has ended"
    with holding(busy):
        both = handclip("audit", "0", "1", "--no-images")
        alone = handclip("audit", "1", "--no-images")
        listed = json.loads(handclip("audit", "0", "1", "--no-images", "--json").out)
    assert both.code == 0
    unread = "images of manifest_dorsal_r.json: --no-images was given"
    assert both.out.splitlines()[-3:] == [
        "1 checked: all that could be checked matches.",
        "1 not checked: 1/manifest_dorsal_r.json",
        f"2 match, 0 differ, 0 gone, 2 not checked: {unread}; {reason}",
    ]
    # Where nothing at all could be checked, success would be a lie.
    assert alone.code == 1
    assert alone.out.splitlines()[-2:] == [
        "1 not checked: 1/manifest_dorsal_r.json",
        f"0 match, 0 differ, 0 gone, 1 not checked: {reason}",
    ]
    assert [(one["holds"], one["counts"]["not checked"]) for one in listed] == [(True, 1), (None, 1)]


@pytest.mark.promise("model-elsewhere")
def test_what_lies_on_another_machine_is_no_failure(handclip: Handclip, manifests: Path, here: Path) -> None:
    weights = here / "weights" / "own.pt"
    weights.parent.mkdir()
    tower = build_model(baseline_config(manifests, input_size=None)).encoder.tower.state_dict()  # type: ignore[union-attr]
    torch.save({f"visual.{name}": value for name, value in tower.items()}, weights)
    config = baseline_config(
        manifests, num_splits=1, flip_settings=["none"], explained_images=0, pretrained=str(weights)
    )
    evaluate(config)
    weights.unlink()
    answer = handclip("audit", "eval_logs", "--no-images")
    assert answer.code == 1
    assert answer.out.splitlines()[-1].split(", ")[1:3] == ["0 differ", "1 gone"]
    weights.parent.rmdir()
    answer = handclip.ok("audit", "eval_logs")
    assert answer.out.splitlines()[-1].endswith(
        f"0 differ, 0 gone, 1 not checked: weights: {weights} is not here, nor is its folder"
    )


def test_audit_refuses_what_holds_no_run_and_prints_names_as_they_are(handclip: Handclip, here: Path) -> None:
    assert "holds nothing to audit" in handclip.refused("audit", here, code=1)
    (here / "[red]manifest.json").write_text("{}")
    answer = handclip("audit", "[red]manifest.json")
    assert answer.code == 1 and "[red]manifest.json" in answer.out


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("note", 0), ("problem", 1)])
def test_doctor_fails_for_problems_only(
    state: Any, code: int, handclip: Handclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = {"name": "hub", "state": state, "found": "no answer [yet]", "advice": "name a file"}
    checks = [Check("torch", "ok", "2.13"), Check(**hub)]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    answer = handclip("doctor")
    assert answer.code == code
    lines = [line.split() for line in answer.out.splitlines()]
    assert lines == [["ok", "torch", "2.13"], [state, "hub", "no", "answer", "[yet].", "name", "a", "file"]]
    answer = handclip("doctor", "--json")
    assert answer.code == code
    assert json.loads(answer.out)[1] == hub
