import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import HANDS

from handclip import demo
from handclip.config.loading import parse_config
from handclip.config.naming import run_name
from handclip.errors import DataError, HandCLIPError

Handclip = Callable[..., Any]
TINY: dict[str, Any] = {"input_size": 32, "num_workers": 0, "device": "cpu", "num_splits": 2}


@pytest.fixture
def tiny_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's own recipe with everything small."""
    monkeypatch.setattr(demo, "SYNTHETIC", HANDS)

    def parse_tiny(values: dict[str, Any], source: str) -> Any:
        small = {**values, **TINY}
        if "epochs" in small:
            small |= {"epochs": 1, "batch_size": 24, "warmup_epochs": 0}
        return parse_config(small, source)

    monkeypatch.setattr(demo, "parse_config", parse_tiny)


ROWS = [
    ("0", "-"),
    ("1", "ce"),
    ("2", "ce"),
    ("2", "ce + triplet"),
    ("2", "ce + center"),
    ("2", "ce + arcface"),
    ("2", "ce + triplet + center"),
]


def test_the_demo_from_end_to_end(tiny_recipe: None, handclip: Handclip, here: Path) -> None:
    answer = handclip("demo", "--out", "out")
    assert answer.code == 0, answer.err
    assert answer.out.count("ce + triplet + center") == 2
    assert "Everything was written to out/" in answer.out
    for protocol in ("gallery", "gallery_all"):
        table = json.loads((here / "out" / f"comparison_{protocol}.json").read_text())
        assert f"gallery protocol: {protocol} " in table["protocol"]
        assert "flip: sum" in table["protocol"]
        assert [(row["stage"], row["losses"]) for row in table["rows"]] == ROWS
        for kind in ("md", "csv"):
            assert (here / "out" / f"comparison_{protocol}.{kind}").is_file()
    names = {path.name for path in (here / "out").iterdir()}
    assert names >= {"synthetic_hands", "manifests", "train_logs", "eval_logs", "saved_models"}
    assert len(list((here / "out" / "eval_logs").iterdir())) == 7
    assert not list(here.rglob("*.part"))

    again = handclip("demo", "--out", "out")
    assert again.code == 1
    assert "out exists already. Add --resume" in again.err
    before = {path: path.stat().st_mtime_ns for path in (here / "out" / "saved_models").iterdir()}
    resumed = handclip("demo", "--out", "out", "--resume")
    assert resumed.code == 0
    assert resumed.err.count("has already ended") == 6
    assert {path: path.stat().st_mtime_ns for path in (here / "out" / "saved_models").iterdir()} == before


def test_the_demo_on_given_hands(tiny_recipe: None, hands: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "demo_configs", lambda out, hands: configs(out, hands)[:2])
    result = demo.run_demo(hands, here / "out")
    assert [row.stage for row in result.tables["gallery"].rows] == ["0", "1"]
    assert not (here / "out" / "synthetic_hands").exists()


configs = demo.demo_configs


def test_the_demo_refuses_what_is_not_in_the_layout(here: Path) -> None:
    (here / "pictures").mkdir()
    with pytest.raises(DataError, match="not in the layout of 11k Hands"):
        demo.run_demo(here / "pictures", here / "out")
    assert not (here / "out").exists()
    with pytest.raises(HandCLIPError, match="exists already"):
        demo.run_demo(None, here / "pictures")


@pytest.mark.parametrize("hands", ["synthetic", "photographs"])
def test_the_recipe_is_part_of_the_package(hands: str, here: Path) -> None:
    recipe = yaml.safe_load(files("handclip.config").joinpath("demo.yml").read_text(encoding="utf-8"))
    assert list(recipe["variants"]) == ["ce", "ce_triplet", "ce_center", "ce_arcface", "ce_triplet_center"]
    stage0, stage1, *variants = demo.demo_configs(here, hands)
    assert (stage0.variant, stage1.variant, stage1.resume_from) == ("baseline", "finetuned", None)
    assert {config.resume_from for config in variants} == {here / "saved_models" / f"{run_name(stage1)}.pth"}
    assert {config.aspect for config in (stage0, stage1, *variants)} == {"all"}
    assert len({run_name(config) for config in (stage0, stage1, *variants)}) == 7
