import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Handclip, changes
from PIL import Image
from tiny_study import (
    LOSSES,
    baseline_values,
    loss_columns,
    metrics_without_time,
    same_weights,
    tiny_values,
    weights,
    write_config,
)

from handclip import __version__
from handclip.config.loading import load_config
from handclip.parallel import hardware
from handclip.runs.provenance import Session
from handclip.runs.train import train


@pytest.fixture(scope="module")
def trained_once(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `tiny.yml` and its run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        train(load_config(write_config(Path("tiny.yml"), tiny_values(manifests, epochs=1))))
    return folder


@pytest.fixture
def model(trained_once: Path, here: Path) -> Path:
    """Work in a copy of that folder; the path of the model in it."""
    shutil.copytree(trained_once, here, dirs_exist_ok=True)
    [model] = Path().glob("saved_models/*[!t].pth")
    return model


@pytest.fixture
def baseline(manifests: Path, here: Path) -> Path:
    return write_config(here / "baseline.yml", baseline_values(manifests, num_splits=1))


def test_train_then_evaluate(handclip: Handclip, manifests: Path, here: Path) -> None:
    losses = LOSSES["ce_triplet_center"]
    config = write_config(here / "tiny.yml", tiny_values(manifests, losses=losses, epochs=1))
    trained = handclip.ok("train", config)
    assert trained.out == ""
    assert "Epoch 1/1: total" in trained.err
    for said in ("1 x cross_entropy", "1 x triplet", "center "):
        assert said in trained.err
    evaluated = handclip.ok("evaluate", config)
    [metrics] = here.glob("eval_logs/*/metrics.json")
    assert json.loads(metrics.read_text())["checkpoint"] == f"saved_models/{metrics.parent.name}.pth"
    log = metrics.parent / "eval.log"
    assert evaluated.out.startswith(log.read_text())
    assert str(log.relative_to(here)) in evaluated.out
    for line in ("Config: ", "Variant:          finetuned", "  Split  3/3:", "  Average:", "protocol: gallery_all"):
        assert line in evaluated.out
    *_, averages = evaluated.out.split("Averages")
    for setting in ("gallery     flip none", "gallery     flip sum", "gallery_all flip none", "gallery_all flip sum"):
        assert setting in averages


def test_stage_2_goes_on_from_stage_1(handclip: Handclip, model: Path) -> None:
    stage2 = changes(resume_from=model, losses="[{type: cross_entropy}, {type: triplet}]")
    said = handclip.ok("train", "tiny.yml", *stage2).err
    assert "Taken over from the earlier stage: the encoder and 2 of 2 tensors of the losses." in said
    handclip.ok("evaluate", "tiny.yml", *stage2)


@pytest.mark.slow
def test_d61_two_runs_give_the_same_metrics(
    handclip: Handclip, manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for place, change in (("first", {}), ("one worker", {"num_workers": 1}), ("other", {"seed": 1})):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        config = write_config(Path("tiny.yml"), tiny_values(manifests, losses=LOSSES["ce_triplet_center"]))
        handclip.ok("train", config, *changes(**change))
        handclip.ok("evaluate", config, *changes(**change))
        [metrics], [table] = Path().glob("eval_logs/*/metrics.json"), Path().glob("train_logs/*/metrics.csv")
        found.append((metrics_without_time(metrics), loss_columns(table)))
    assert found[0] == found[1]
    assert found[2][1] != found[0][1]
    assert found[2][0]["weights_sha256"] != found[0][0]["weights_sha256"]


def test_stopping_and_resuming(
    handclip: Handclip, manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("whole", "halves"):
        (tmp_path / place).mkdir()
        write_config(tmp_path / place / "tiny.yml", tiny_values(manifests, epochs=4))
    monkeypatch.chdir(tmp_path / "whole")
    handclip.ok("train", "tiny.yml")
    monkeypatch.chdir(tmp_path / "halves")
    first = handclip.ok("train", "tiny.yml", "--stop-after", 2)
    assert "Stopped after epoch 2 as asked; --resume goes on from there." in first.err
    assert "exists already. Add --resume" in handclip.refused("train", "tiny.yml", code=1)
    handclip.ok("train", "tiny.yml", "--resume")
    for path in (tmp_path / "whole").glob("saved_models/*"):
        assert same_weights(weights(path), weights(tmp_path / "halves" / "saved_models" / path.name))
    assert "has already ended" in handclip.ok("train", "tiny.yml", "--resume").err


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.promise("evaluation-kept")
def test_an_evaluation_that_is_there_is_shown_and_not_done_again(
    handclip: Handclip, baseline: Path, here: Path
) -> None:
    first = handclip.ok("evaluate", baseline)
    assert "Checkpoint:       none (baseline)" in first.out
    [folder] = Path().glob("eval_logs/*")
    before = contents(folder)
    again = handclip.ok("evaluate", baseline)
    assert again.out.startswith(first.out)
    said = again.out.removeprefix(first.out)
    assert said.startswith(f"{folder} held this evaluation already, whole and as it was written, so nothing was comp")
    assert "Evaluating on" not in again.err
    baseline.rename("elsewhere.yml")
    assert "Config:           elsewhere.yml" in handclip.ok("evaluate", "elsewhere.yml").out
    assert contents(folder) == before

    # A kill between the evaluation and its log has left none, or that of another.
    for damage in (lambda: (folder / "eval.log").unlink(), lambda: (folder / "eval.log").write_text("another")):
        damage()
        handclip.refused("evaluate", "baseline.yml")
        handclip.ok("evaluate", "elsewhere.yml")
        assert "Config:           elsewhere.yml" in (folder / "eval.log").read_text()

    table = folder / "per_query.csv"
    table.write_bytes(before[table.name][:-1])
    repaired = handclip.ok("evaluate", "elsewhere.yml").err
    assert f"{table}: is damaged or was changed" in repaired and "so it is evaluated again" in repaired
    assert table.read_bytes() == before[table.name]
    assert "Evaluating on" in handclip.ok("evaluate", "elsewhere.yml", "--overwrite").err
    assert contents(folder)["provenance.json"] != before["provenance.json"]
    assert table.read_bytes() == before[table.name]

    other = ("evaluate", "elsewhere.yml", *changes(num_splits=2))
    assert "Add --overwrite to replace it" in handclip.refused(*other, code=1)
    handclip.ok(*other, "--overwrite")


@pytest.mark.promise("evaluation-kept")
def test_an_evaluation_that_other_code_has_made_says_so(
    handclip: Handclip, baseline: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_commit", lambda: "0123456789ab")
    handclip.ok("evaluate", baseline)
    assert "other code" not in handclip.ok("evaluate", baseline).out
    monkeypatch.setattr(hardware, "_commit", lambda: "ba9876543210")
    made = f"It was made by HandCLIP {__version__}, commit 0123456789ab, which may be other code than this."
    assert made in handclip.ok("evaluate", baseline).out
    # Killed after the files had their names, and before the session ended.
    monkeypatch.setattr(Session, "_close", lambda *_: None)
    handclip.ok("evaluate", baseline, "--overwrite")
    unknown = "It is not known by which code it was made, as the last that worked on it did not finish."
    for commit in ("ba9876543210", "0123456789ab"):
        monkeypatch.setattr(hardware, "_commit", lambda commit=commit: commit)
        assert unknown in handclip.ok("evaluate", baseline).out
    [provenance] = here.glob("eval_logs/*/provenance.json")
    provenance.write_bytes(provenance.read_bytes()[:-9])
    assert "provenance.json: is damaged or was changed" in handclip.ok("evaluate", baseline).out


COUNTS = {
    "train_identities": 6,
    "train_images": 12,
    "val_images": 6,
    "train_all_images": 18,
    "test_identities": 6,
    "test_images": 18,
    "query_images": 12,
    "gallery_images": 6,
    "gallery_all_images": 24,
    "missing_images": 0,
}


def test_prepare_11k(handclip: Handclip, hands: Path, here: Path) -> None:
    prepare = ("prepare", "11k", "--root", hands, "--out", "manifests", "--seed")
    assert "11k dorsal_r" in handclip.ok(*prepare, 3).out
    summary = json.loads((here / "manifests" / "summary.json").read_text())
    assert list(summary) == ["dorsal_r", "dorsal_l", "palmar_r", "palmar_l"]
    for found in summary.values():
        assert {key: found[key] for key in COUNTS} == COUNTS
        assert len(found["sha256"]) == 64
    assert handclip.ok("prepare", "--check", "manifests").out.count("keeps to the protocol") == 4
    before = {path: path.stat().st_mtime_ns for path in (here / "manifests").iterdir()}
    assert "(unchanged)" in handclip.ok(*prepare, 3).out
    assert "manifests already holds other manifests" in handclip.refused(*prepare, 4, code=1)
    assert {path: path.stat().st_mtime_ns for path in (here / "manifests").iterdir()} == before


def test_prepare_a_folder_with_names_of_any_alphabet(handclip: Handclip, here: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("Łucja", "Анна", "明子", "عمر", "zoë", "O'Neill, P.", "🖐", "7"):
        (here / "people" / name).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / "people" / name / f"手 {number}.png")
    answer = handclip.ok("prepare", "folder", "--root", "people", "--out", "manifests")
    [summary] = json.loads((here / "manifests" / "summary.json").read_text()).values()
    assert (summary["train_identities"], summary["test_identities"]) == (4, 4)
    values = baseline_values(here / "manifests", dataset="folder", aspect="hand")
    handclip.ok("evaluate", write_config(here / "folder.yml", values))
    assert "Анна" in (here / "manifests" / "manifest_hand.json").read_text() or "明子" in answer.out


def test_d59_check_fails_on_a_breach(handclip: Handclip, manifests: Path, hands: Path, here: Path) -> None:
    good = manifests / "manifest_dorsal_r.json"
    handclip.ok("prepare", "--check", good)
    (here / "edited.json").write_text(good.read_text().replace('"seed": 0', '"seed": 1'))
    assert "edited.json" in handclip.refused("prepare", "--check", "edited.json", code=1)

    shutil.copytree(hands, here / "hands")
    handclip.ok("prepare", "11k", "--root", "hands", "--out", "manifests")
    image = next((here / "hands" / "Hands").iterdir())
    image.write_bytes(image.read_bytes() + b"more")
    for manifest in (here / "manifests").glob("manifest_*.json"):
        if image.name in manifest.read_text():
            said = handclip.refused("prepare", "--check", manifest, code=1)
            assert f"1 have another size (Hands/{image.name})" in said


def test_help_and_version(handclip: Handclip) -> None:
    answer = handclip.ok("--help")
    for command in ("prepare", "train", "evaluate", "demo"):
        assert command in answer.out
        handclip.ok(command, "--help")
    assert handclip.ok("--version").out == f"handclip {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian"], "'train'"),
        (["evalute", "a.yml"], "'evaluate'"),
        (["train", "a.yml", "--resum"], "--resume"),
        (["prepare", "11k", "--rot", "x"], "--root"),
        (["prepare", "12k"], "11k"),
        (["prepare", "11k"], "handclip prepare 11k --root DIR --out DIR"),
    ],
)
def test_a_wrong_command_or_option_suggests_the_right_one(arguments: list[str], hint: str, handclip: Handclip) -> None:
    assert hint in handclip.refused(*arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """So it answers at once; how soon that is, the benchmark of the start-up measures."""
    code = (
        f"import sys\nfrom handclip.cli import main\nsys.argv = ['handclip', *{arguments}]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'open_clip', 'numpy', 'matplotlib', 'PIL', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert len(sys.modules) < 1000, len(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env={**os.environ, "TERM": "dumb"})


def test_a_model_is_evaluated_on_data_that_it_was_not_trained_on(handclip: Handclip, model: Path, here: Path) -> None:
    evaluate = ("evaluate", "tiny.yml", *changes(aspect="palmar_l"))
    model.rename(here / "aside.pth")
    assert "neither saved_models/" in handclip.refused(*evaluate)
    (here / "aside.pth").rename(model)
    answer = handclip.ok(*evaluate)
    [metrics] = here.glob("eval_logs/*_on_11k_palmar_l_*/metrics.json")
    assert json.loads(metrics.read_text())["checkpoint"] == str(model)
    assert f"Evaluating {model.stem}, trained on 11k dorsal_r, on 11k palmar_l" in " ".join(answer.err.split())
    assert "Cross-domain:     trained on 11k dorsal_r" in answer.out

    # Trained there as well, the run of that aspect is evaluated, and the way to the other is told.
    handclip.ok("train", "tiny.yml", *changes(aspect="palmar_l"))
    both = handclip.ok(*evaluate)
    assert f"--set checkpoint={model}" in "".join(both.err.split("\n"))
    assert "Cross-domain" not in both.out
    assert "Cross-domain" in handclip.ok(*evaluate, *changes(checkpoint=model)).out
    assert len(list(here.glob("eval_logs/*"))) == 2


def test_the_log_of_a_named_checkpoint_is_about_that_checkpoint(handclip: Handclip, model: Path, here: Path) -> None:
    handclip.ok("evaluate", "tiny.yml", *changes(experiment="another", checkpoint=model, epochs=9))
    [log] = here.glob("eval_logs/*/eval.log")
    assert log.parent.name == model.stem
    assert "Experiment:       tiny\n" in log.read_text() and "another" not in log.read_text()


def test_reranking_from_the_command_line(handclip: Handclip, baseline: Path) -> None:
    refused = handclip.refused("evaluate", baseline, *changes(rerank={}), code=1)
    assert refused.startswith("Error: rerank: 11k dorsal_r, gallery: each identity of the gallery has one image")
    wrong = handclip.refused("evaluate", baseline, "--set", "rerank.lamda=0.5")
    assert "unknown key 'rerank.lamda'. Did you mean 'lambda'?" in wrong
    handclip.ok("evaluate", baseline, *changes(rerank="none"))
