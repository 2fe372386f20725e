"""`handclip verify` and `handclip doctor`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_study import baseline_config

from handclip import doctor
from handclip.doctor import Check
from handclip.engine.evaluation import evaluate

Handclip = Callable[..., Any]


def test_verify_prints_a_table_and_fails_where_something_differs(
    handclip: Handclip, manifests: Path, here: Path
) -> None:
    folder = evaluate(baseline_config(manifests, num_splits=1, flip_settings=["none"], explained_images=0)).folder
    answer = handclip("verify", folder)
    assert answer.code == 0
    assert "1 verified: all that could be checked matches." in answer.out
    assert "metrics.json: gallery, flip none" in answer.out
    matches = answer.out.count(" matches ")
    assert answer.out.splitlines()[-1] == f"{matches} match, 0 differ, 0 gone, 0 not checked"

    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["results"][0]["mean"]["rank1"] = 0.999
    (folder / "metrics.json").write_text(json.dumps(metrics))
    answer = handclip("verify", folder, "--no-images")
    assert answer.code == 1
    assert "mean.rank1: 0.999 is recorded, recomputed" in " ".join(answer.out.split())
    assert f"1 no longer as recorded: {folder}" in answer.out
    assert answer.out.splitlines()[-1].endswith(" 2 differ, 0 gone, 1 not checked")

    answer = handclip("verify", "eval_logs", "--json")
    assert answer.code == 1
    (found,) = json.loads(answer.out)
    assert (found["place"], found["kind"], found["holds"]) == (str(folder), "evaluation", False)
    assert {"what", "outcome", "found"} == found["findings"][0].keys()
    assert {finding["outcome"] for finding in found["findings"]} >= {"matches", "differs"}


def test_verify_refuses_what_holds_no_run(handclip: Handclip, here: Path) -> None:
    answer = handclip("verify", here)
    assert answer.code == 1
    assert "holds nothing to verify" in answer.err


def test_verify_prints_names_as_they_are(handclip: Handclip, here: Path) -> None:
    path = here / "[red]manifest.json"
    path.write_text("{}")
    answer = handclip("verify", path)
    assert answer.code == 1
    assert "[red]manifest.json" in answer.out


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("note", 0), ("problem", 1)])
def test_doctor_fails_for_problems_only(
    state: Any, code: int, handclip: Handclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [Check("torch", "ok", "2.13"), Check("hub", state, "no answer [yet]", "name a file")]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    answer = handclip("doctor")
    assert answer.code == code
    lines = [line.split() for line in answer.out.splitlines()]
    assert lines == [["ok", "torch", "2.13"], [state, "hub", "no", "answer", "[yet].", "name", "a", "file"]]
    answer = handclip("doctor", "--json")
    assert answer.code == code
    assert json.loads(answer.out)[1] == {
        "name": "hub",
        "state": state,
        "found": "no answer [yet]",
        "advice": "name a file",
    }
