"""Every part of `metrics.json` that can be recomputed is, however the model was evaluated."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from audited_study import GONE, RUNTIME, SMALL, Copy, audited, edit, faults, found, seal
from tiny_study import baseline_config, load_manifest, several_gallery_images, tiny_config

from handclip.audit import Outcome
from handclip.runs.evaluate import evaluate

METRICS, IDENTITY, LEFT_OUT = "metrics.json", "metrics.json: identity", "metrics.json: images left out"
KNOWN = "test_people_known_from_other_aspects"
PART = {"palmar_l": {"manifest_sha256": "0", "results": []}}


@pytest.mark.promise("tampering")
@pytest.mark.parametrize(
    ("key", "value", "what", "sentence"),
    [
        ("results.0.mean.rank1", 0.25001, "metrics.json: gallery, flip none", "mean.rank1: 0.25001 is recorded, recom"),
        ("results.0.mean.map", float("nan"), "metrics.json: gallery, flip none", "mean.map: nan is recorded"),
        ("results.0.queries", 11, "metrics.json: gallery, flip none", "queries: 11 is recorded, recomputed 12"),
        ("results.1.splits.0.map", 0.99, "metrics.json: gallery_all, flip none", "splits[0].map: 0.99 is recorded, "),
        ("results.1", GONE, METRICS, "1 results are recorded, recomputed 2"),
        ("seed", 7, "metrics.json: facts of the model", "seed: 7 is recorded, recomputed 0"),
        ("weights_sha256", 64 * "0", "metrics.json: weights_sha256", "0000 is recorded, recomputed"),
        ("manifest_sha256", 64 * "0", "metrics.json: manifest_sha256", "0000 is recorded, recomputed"),
        ("run", "better", IDENTITY, "run: better is recorded, recomputed audited_vit_small_11k_"),
        ("cross_domain", True, IDENTITY, "cross_domain: True is recorded, recomputed False"),
        ("trained_on", None, IDENTITY, "trained_on: None is recorded, recomputed {'dataset': '11k'"),
        ("rerank", {"k1": 3}, IDENTITY, "rerank: {'k1': 3} is recorded, recomputed None"),
        ("settings.num_splits", 10, IDENTITY, "settings.num_splits: 10 is recorded, recomputed 2"),
        (
            "settings.test_feature",
            "after_neck",
            IDENTITY,
            "settings.test_feature: after_neck is recorded, recomputed",
        ),
        (KNOWN, 5, IDENTITY, f"{KNOWN}: 5 is recorded, recomputed 0"),
        ("missing_images", 3, LEFT_OUT, "missing_images: 3 is recorded, recomputed 0"),
        ("unreadable_images", 3, LEFT_OUT, "unreadable_images: 3 is recorded, recomputed 0"),
        ("distinct_images", 7, "metrics.json: distinct_images", "distinct_images: 7 is recorded, recomputed "),
        ("checkpoint", None, "metrics.json: checkpoint", "checkpoint: None is recorded, recomputed /"),
        ("checkpoint", "a/b.pth", "metrics.json: checkpoint", "checkpoint: a/b.pth is recorded, recomputed /"),
        ("per_aspect", PART, "metrics.json: per_aspect", "parts: ['palmar_l'] is recorded, recomputed []"),
    ],
)
def test_an_edited_number_is_found_though_all_checksums_were_made_anew(
    key: str, value: Any, what: str, sentence: str, copy: Copy
) -> None:
    edit(copy.evaluation / METRICS, key, value)
    found = faults(audited(copy.evaluation))
    assert list(found) == [what]
    assert sentence in found[what].found


ALL = ["dorsal_l", "dorsal_r", "palmar_l", "palmar_r"]


@pytest.mark.promise("tampering")
def test_the_parts_of_all_aspects_are_recomputed(manifests: Path, here: Path) -> None:
    folder = evaluate(baseline_config(manifests, aspect="all", **{**SMALL, "num_splits": 1})).folder
    assert audited(folder).holds
    written, part, parts = (folder / METRICS).read_text(), "per_aspect.palmar_l", "metrics.json: per_aspect"
    for key, value, what, sentence in (
        ("per_aspect", GONE, parts, f"parts: [] is recorded, recomputed {ALL}"),
        (part, GONE, parts, f"['dorsal_l', 'dorsal_r', 'palmar_r'] is recorded, recomputed {ALL}"),
        (f"{part}.results.0.mean.map", 0.99, f"{parts}.palmar_l: gallery, flip none", "mean.map: 0.99 is recorded"),
        (f"{part}.manifest_sha256", 64 * "0", "metrics.json: manifest_sha256", "palmar_l: 0000"),
    ):
        (folder / METRICS).write_text(written)
        edit(folder / METRICS, key, value)
        fault = faults(audited(folder))
        assert list(fault) == [what]
        assert sentence in fault[what].found


@pytest.mark.promise("tampering")
def test_an_evaluation_on_other_data_holds_wherever_it_is_moved_to(copy: Copy, manifests: Path, tmp_path: Path) -> None:
    """By a checkpoint that is named, on an aspect that it was not trained on, and re-ranked."""
    places = {key: str(copy.study / name) for key, name in RUNTIME.items()}
    manifest = several_gallery_images(manifests, tmp_path / "several.json", "palmar_l")
    changes = {**SMALL, **places, "aspect": "palmar_l", "gallery_protocols": ["gallery"], "rerank": {"k1": 3}}
    folder = evaluate(tiny_config(manifest, checkpoint=str(copy.checkpoint), **changes)).folder
    assert json.loads((folder / METRICS).read_text())["cross_domain"]
    path = folder / "manifest_palmar_l.json"
    replace(load_manifest(folder, "palmar_l"), root=tmp_path / "photographs").save(path)
    seal(folder)
    shutil.move(copy.study, tmp_path / "moved")
    folder = tmp_path / "moved" / "eval_logs" / folder.name
    result = audited(folder, images=True)
    # In 11k re-ranking needs galleries that its protocol does not have.
    assert faults(result).keys() == {"protocol"}
    assert [one.what for one in result.findings if one.outcome == Outcome.NOT_CHECKED] == [f"images of {path.name}"]
    assert "run, dataset, aspect" in found(result, IDENTITY).found
    for key, value in (("cross_domain", False), ("rerank", None), ("trained_on", None), ("run", "tiny")):
        written = (folder / METRICS).read_text()
        edit(folder / METRICS, key, value)
        fault = faults(audited(folder))
        assert list(fault) == ["protocol", IDENTITY]
        assert fault[IDENTITY].found.startswith(f"{key}: ")
        (folder / METRICS).write_text(written)


@pytest.mark.promise("evaluation-before-the-end")
@pytest.mark.parametrize(
    ("recorded", "ended", "outcome", "said"),
    [
        (False, False, Outcome.NOTE, "had not ended when its best model until then was evaluated"),
        (False, True, Outcome.NOTE, "had not ended when its best model until then was evaluated, and has since: eval"),
        (True, False, Outcome.DIFFERS, "training_ended: True is recorded, but result.json of that training is not"),
        (None, False, Outcome.DIFFERS, "training_ended: None is recorded, but result.json"),
        (True, True, None, ""),
        (True, None, None, ""),
        (None, True, None, ""),
    ],
)
def test_whether_training_had_ended_is_held_against_its_records(
    recorded: bool | None, ended: bool | None, outcome: Outcome | None, said: str, copy: Copy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("handclip.audit.model.training_has_ended", lambda *_: ended)
    edit(copy.evaluation / METRICS, "training_ended", recorded)
    what = ("training", "metrics.json: training_ended")
    mine = [one for one in audited(copy.evaluation).findings if one.what in what]
    assert [one.outcome for one in mine] == ([outcome] if outcome else [])
    assert all(one.found.startswith(said) for one in mine)
