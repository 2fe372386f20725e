"""Every part of `metrics.json` that can be recomputed is, however the model was evaluated."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audited_study import RUNTIME, SMALL, Copy, audited, faults, found
from tiny_study import baseline_config, load_manifest, several_gallery_images, tiny_config

from handclip.audit import Outcome, audit
from handclip.checksums import read_checksums, write_checksums
from handclip.runs.evaluate import evaluate

Change = Callable[[Any], None]


IDENTITY, LEFT_OUT = "metrics.json: identity", "metrics.json: images left out"
KNOWN = "test_people_known_from_other_aspects"


def _better_mean(metrics: dict[str, Any]) -> None:
    metrics["results"][0]["mean"]["rank1"] += 1e-6


def _better_draw(metrics: dict[str, Any]) -> None:
    metrics["results"][1]["splits"][0]["map"] = 0.99


def _fewer_queries(metrics: dict[str, Any]) -> None:
    metrics["results"][0]["queries"] -= 1


def _no_draw(metrics: dict[str, Any]) -> None:
    del metrics["results"][1]


def _other_seed(metrics: dict[str, Any]) -> None:
    metrics["seed"] = 7


def _other_weights(metrics: dict[str, Any]) -> None:
    metrics["weights_sha256"] = "0" * 64


def _other_manifest(metrics: dict[str, Any]) -> None:
    metrics["manifest_sha256"] = "0" * 64


def _fewer_draws(metrics: dict[str, Any]) -> None:
    metrics["settings"]["num_splits"] = 10


def _other_feature(metrics: dict[str, Any]) -> None:
    metrics["settings"]["test_feature"] = "after_neck"


def _an_aspect(metrics: dict[str, Any]) -> None:
    metrics["per_aspect"] = {"palmar_l": {"manifest_sha256": "0", "results": []}}


def _set(key: str, value: Any) -> Change:
    return lambda metrics: metrics.update({key: value})


def _no_number(metrics: dict[str, Any]) -> None:
    metrics["results"][0]["mean"]["map"] = float("nan")


@pytest.mark.parametrize(
    ("change", "what", "sentence"),
    [
        (_better_mean, "metrics.json: gallery, flip none", "mean.rank1: 0."),
        (_better_draw, "metrics.json: gallery_all, flip none", "splits[0].map: 0.99 is recorded, recomputed 0."),
        (_fewer_queries, "metrics.json: gallery, flip none", "queries: 11 is recorded, recomputed 12"),
        (_no_draw, "metrics.json", "1 results are recorded, recomputed 2"),
        (_other_seed, "metrics.json: facts of the model", "seed: 7 is recorded, recomputed 0"),
        (_other_weights, "metrics.json: weights_sha256", "0000 is recorded, recomputed"),
        (_other_manifest, "metrics.json: manifest_sha256", "0000 is recorded, recomputed"),
        (
            _set("run", "better"),
            IDENTITY,
            "run: better is recorded, recomputed audited_vit_small_11k_",
        ),
        (_set("cross_domain", True), IDENTITY, "cross_domain: True is recorded, recomputed False"),
        (
            _set("trained_on", None),
            IDENTITY,
            "trained_on: None is recorded, recomputed {'dataset': '11k'",
        ),
        (_set("rerank", {"k1": 3}), IDENTITY, "rerank: {'k1': 3} is recorded, recomputed None"),
        (_fewer_draws, IDENTITY, "settings.num_splits: 10 is recorded, recomputed 2"),
        (
            _other_feature,
            IDENTITY,
            "settings.test_feature: after_neck is recorded, recomputed before_neck",
        ),
        (_set(KNOWN, 5), IDENTITY, f"{KNOWN}: 5 is recorded, recomputed 0"),
        (_set("missing_images", 3), LEFT_OUT, "missing_images: 3 is recorded, recomputed 0"),
        (
            _set("unreadable_images", 3),
            LEFT_OUT,
            "unreadable_images: 3 is recorded, recomputed 0",
        ),
        (_set("distinct_images", 7), "metrics.json: distinct_images", "distinct_images: 7 is recorded, recomputed "),
        (_set("checkpoint", None), "metrics.json: checkpoint", "checkpoint: None is recorded, recomputed /"),
        (_set("checkpoint", "a/b.pth"), "metrics.json: checkpoint", "checkpoint: a/b.pth is recorded, recomputed /"),
        (_an_aspect, "metrics.json: per_aspect", "parts: ['palmar_l'] is recorded, recomputed []"),
        (_no_number, "metrics.json: gallery, flip none", "mean.map: nan is recorded"),
    ],
)
def test_an_edited_number_is_found_though_all_checksums_were_made_anew(
    change: Change, what: str, sentence: str, copy: Copy
) -> None:
    copy.change_json(copy.evaluation / "metrics.json", change)
    copy.seal(copy.evaluation)
    found = faults(audited(copy.evaluation))
    assert list(found) == [what]
    assert sentence in found[what].found


def _no_parts(metrics: dict[str, Any]) -> None:
    del metrics["per_aspect"]


def _no_part(metrics: dict[str, Any]) -> None:
    del metrics["per_aspect"]["palmar_l"]


def _better_part(metrics: dict[str, Any]) -> None:
    metrics["per_aspect"]["palmar_l"]["results"][0]["mean"]["map"] = 0.99


def _other_part(metrics: dict[str, Any]) -> None:
    metrics["per_aspect"]["palmar_l"]["manifest_sha256"] = "0" * 64


ALL = ["dorsal_l", "dorsal_r", "palmar_l", "palmar_r"]


def test_the_parts_of_all_aspects_are_recomputed(manifests: Path, here: Path) -> None:
    folder = evaluate(baseline_config(manifests, aspect="all", **{**SMALL, "num_splits": 1})).folder
    assert audited(folder).holds
    path = folder / "metrics.json"
    written = path.read_text()
    for change, what, sentence in (
        (_no_parts, "metrics.json: per_aspect", f"parts: [] is recorded, recomputed {ALL}"),
        (_no_part, "metrics.json: per_aspect", f"['dorsal_l', 'dorsal_r', 'palmar_r'] is recorded, recomputed {ALL}"),
        (_better_part, "metrics.json: per_aspect.palmar_l: gallery, flip none", "mean.map: 0.99 is recorded"),
        (_other_part, "metrics.json: manifest_sha256", "palmar_l: 0000"),
    ):
        metrics = json.loads(written)
        change(metrics)
        path.write_text(json.dumps(metrics))
        write_checksums(folder, read_checksums(folder) or {})
        fault = faults(audited(folder))
        assert list(fault) == [what]
        assert sentence in fault[what].found


def test_an_evaluation_on_other_data_holds_wherever_it_is_moved_to(copy: Copy, manifests: Path, tmp_path: Path) -> None:
    """By a checkpoint that is named, on an aspect that it was not trained on, and re-ranked."""
    places = {key: str(copy.study / name) for key, name in RUNTIME.items()}
    manifest = several_gallery_images(manifests, tmp_path / "several.json", "palmar_l")
    changes = {**SMALL, **places, "aspect": "palmar_l", "gallery_protocols": ["gallery"], "rerank": {"k1": 3}}
    folder = evaluate(tiny_config(manifest, checkpoint=str(copy.checkpoint), **changes)).folder
    assert json.loads((folder / "metrics.json").read_text())["cross_domain"]
    path = folder / "manifest_palmar_l.json"
    replace(load_manifest(folder, "palmar_l"), root=tmp_path / "photographs").save(path)
    write_checksums(folder, read_checksums(folder) or {})
    shutil.move(copy.study, tmp_path / "moved")
    folder = tmp_path / "moved" / "eval_logs" / folder.name
    result = audited(folder, images=True)
    # In 11k re-ranking needs galleries that its protocol does not have.
    assert faults(result).keys() == {"protocol"}
    assert [one.what for one in result.findings if one.outcome == Outcome.NOT_CHECKED] == [f"images of {path.name}"]
    assert "run, dataset, aspect" in found(result, IDENTITY).found
    for key, value in (("cross_domain", False), ("rerank", None), ("trained_on", None), ("run", "tiny")):
        metrics = folder / "metrics.json"
        written = metrics.read_text()
        metrics.write_text(json.dumps({**json.loads(written), key: value}))
        write_checksums(folder, read_checksums(folder) or {})
        fault = faults(audited(folder))
        assert list(fault) == ["protocol", IDENTITY]
        assert fault[IDENTITY].found.startswith(f"{key}: ")
        metrics.write_text(written)


@pytest.mark.parametrize(
    ("recorded", "ended", "outcome", "said"),
    [
        (False, False, Outcome.NOTE, "had not ended when its best model until then was evaluated"),
        (
            False,
            True,
            Outcome.NOTE,
            "had not ended when its best model until then was evaluated, and has since: evaluate",
        ),
        (
            True,
            False,
            Outcome.DIFFERS,
            "training_ended: True is recorded, but result.json of that training is not there",
        ),
        (True, True, None, ""),
        (True, None, None, ""),
        (None, True, None, ""),
        (None, False, Outcome.DIFFERS, "training_ended: None is recorded, but result.json"),
    ],
)
def test_whether_training_had_ended_is_held_against_its_records(
    recorded: bool | None, ended: bool | None, outcome: Outcome | None, said: str, copy: Copy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("handclip.audit.model.training_has_ended", lambda *_: ended)
    copy.change_json(copy.evaluation / "metrics.json", lambda metrics: metrics.update(training_ended=recorded))
    copy.seal(copy.evaluation)
    (result,) = audit([copy.evaluation], images=False)
    mine = [one for one in result.findings if one.what in ("training", "metrics.json: training_ended")]
    assert [one.outcome for one in mine] == ([outcome] if outcome else [])
    assert all(one.found.startswith(said) for one in mine)
