import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from handclip.parallel import hardware
from handclip.runs.provenance import Session

Handclip = Callable[..., Any]


@pytest.mark.parametrize("losses", LOSSES)
def test_train_then_evaluate(losses: str, handclip: Handclip, manifests: Path, here: Path) -> None:
    config = write_config(here / "tiny.yml", tiny_values(manifests, losses=LOSSES[losses], epochs=1))
    trained = handclip("train", config)
    assert (trained.code, trained.out) == (0, "")
    assert "Epoch 1/1: total" in trained.err
    for loss in LOSSES[losses]:
        assert f"1 x {loss['type']}" in trained.err or loss["type"] == "center"
        assert f"{loss['type']} " in trained.err
    evaluated = handclip("evaluate", config)
    assert evaluated.code == 0
    [metrics] = here.glob("eval_logs/*/metrics.json")
    assert json.loads(metrics.read_text())["checkpoint"] == f"saved_models/{metrics.parent.name}.pth"
    log = metrics.parent / "eval.log"
    assert evaluated.out.startswith(log.read_text())
    assert str(log.relative_to(here)) in evaluated.out
    for line in (
        "Config: ",
        "Variant:          finetuned",
        "  Split  3/3:",
        "  Average:",
        "Gallery protocol: gallery_all",
    ):
        assert line in evaluated.out


def test_stage_2_goes_on_from_stage_1(handclip: Handclip, manifests: Path, here: Path) -> None:
    config = write_config(here / "stage1.yml", tiny_values(manifests, epochs=1))
    assert handclip("train", config).code == 0
    [model] = here.glob("saved_models/*cross_entropy*[!t].pth")
    changes = ["--set", f"resume_from={model}", "--set", "losses=[{type: cross_entropy}, {type: triplet}]"]
    second = handclip("train", config, *changes)
    assert second.code == 0
    assert "Taken over from the earlier stage: the encoder and 2 of 2 tensors of the losses." in second.err
    assert handclip("evaluate", config, *changes).code == 0


def test_a_baseline_is_evaluated_as_it_is(handclip: Handclip, manifests: Path, here: Path) -> None:
    config = write_config(here / "baseline.yml", baseline_values(manifests))
    answer = handclip("evaluate", config, "--set", "aspect=palmar_l")
    assert answer.code == 0
    assert "Checkpoint:       none (baseline)" in answer.out
    assert "Aspect:           palmar_l" in answer.out


def test_d61_two_runs_give_the_same_metrics(
    handclip: Handclip, manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for place, changes in {"first": [], "second": [], "one worker": ["num_workers=1"], "other": ["seed=1"]}.items():
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        config = write_config(Path("tiny.yml"), tiny_values(manifests, losses=LOSSES["ce_triplet_center"]))
        overrides = [part for change in changes for part in ("--set", change)]
        assert handclip("train", config, *overrides).code == 0
        assert handclip("evaluate", config, *overrides).code == 0
        [metrics], [table] = Path().glob("eval_logs/*/metrics.json"), Path().glob("train_logs/*/metrics.csv")
        found.append((metrics_without_time(metrics), loss_columns(table)))
    assert found[0] == found[1] == found[2]
    assert found[3][1] != found[0][1]
    assert found[3][0]["weights_sha256"] != found[0][0]["weights_sha256"]


def test_stopping_and_resuming(
    handclip: Handclip, manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("whole", "halves"):
        (tmp_path / place).mkdir()
        write_config(tmp_path / place / "tiny.yml", tiny_values(manifests, epochs=4))
    monkeypatch.chdir(tmp_path / "whole")
    assert handclip("train", "tiny.yml").code == 0
    monkeypatch.chdir(tmp_path / "halves")
    first = handclip("train", "tiny.yml", "--stop-after", 2)
    assert first.code == 0
    assert "Stopped after epoch 2 as asked; --resume goes on from there." in first.err
    again = handclip("train", "tiny.yml")
    assert again.code == 1
    assert "exists already. Add --resume" in again.err
    assert handclip("train", "tiny.yml", "--resume").code == 0
    for path in (tmp_path / "whole").glob("saved_models/*"):
        assert same_weights(weights(path), weights(tmp_path / "halves" / "saved_models" / path.name))
    assert "has already ended" in handclip("train", "tiny.yml", "--resume").err


def test_another_evaluation_is_replaced_only_when_asked(handclip: Handclip, manifests: Path, here: Path) -> None:
    config = write_config(here / "baseline.yml", baseline_values(manifests))
    assert handclip("evaluate", config).code == 0
    other = handclip("evaluate", config, "--set", "num_splits=2")
    assert other.code == 1
    assert "Add --overwrite to replace it" in other.err
    assert handclip("evaluate", config, "--set", "num_splits=2", "--overwrite").code == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_evaluation_that_is_there_is_shown_and_not_done_again(
    handclip: Handclip, manifests: Path, here: Path
) -> None:
    config = write_config(here / "baseline.yml", baseline_values(manifests, num_splits=1))
    first = handclip("evaluate", config)
    [folder] = here.glob("eval_logs/*")
    before = contents(folder)
    again = handclip("evaluate", config)
    assert again.code == 0
    assert again.out.startswith(first.out)
    config.rename(here / "elsewhere.yml")
    config = here / "elsewhere.yml"
    assert "Config:           elsewhere.yml" in handclip("evaluate", "elsewhere.yml").out
    relative = folder.relative_to(here)
    said = again.out.removeprefix(first.out)
    assert said.startswith(f"{relative} held this evaluation already, whole and as it was written, so nothing was comp")
    assert "Evaluating on" not in again.err
    assert contents(folder) == before

    # A kill between the evaluation and its log has left none, or that of another.
    for damage in (lambda: (folder / "eval.log").unlink(), lambda: (folder / "eval.log").write_text("another")):
        damage()
        assert handclip("evaluate", "baseline.yml").code == 2
        assert handclip("evaluate", "elsewhere.yml").code == 0
        assert "Config:           elsewhere.yml" in (folder / "eval.log").read_text()

    anew = handclip("evaluate", config, "--overwrite")
    assert anew.code == 0
    assert "Evaluating on" in anew.err
    assert contents(folder)["provenance.json"] != before["provenance.json"]
    assert contents(folder)["per_query.csv"] == before["per_query.csv"]


def test_an_evaluation_that_is_there_but_damaged_is_done_again(handclip: Handclip, manifests: Path, here: Path) -> None:
    config = write_config(here / "baseline.yml", baseline_values(manifests, num_splits=1))
    assert handclip("evaluate", config).code == 0
    [table] = here.glob("eval_logs/*/per_query.csv")
    before = table.read_bytes()
    table.write_bytes(before[:-1])
    again = handclip("evaluate", config)
    assert again.code == 0
    assert f"{table.relative_to(here)}: is damaged or was changed" in again.err
    assert "so it is evaluated again" in again.err
    assert table.read_bytes() == before


def test_an_evaluation_that_other_code_has_made_says_so(
    handclip: Handclip, manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(here / "baseline.yml", baseline_values(manifests, num_splits=1))
    monkeypatch.setattr(hardware, "_commit", lambda: "0123456789ab")
    assert handclip("evaluate", config).code == 0
    assert "other code" not in handclip("evaluate", config).out
    monkeypatch.setattr(hardware, "_commit", lambda: "ba9876543210")
    made = f"It was made by HandCLIP {__version__}, commit 0123456789ab, which may be other code than this."
    assert made in " ".join(handclip("evaluate", config).out.split())
    # Killed after the files had their names, and before the session ended.
    monkeypatch.setattr(Session, "_close", lambda *_: None)
    assert handclip("evaluate", config, "--overwrite").code == 0
    unknown = "It is not known by which code it was made, as the last that worked on it did not finish."
    assert unknown in " ".join(handclip("evaluate", config).out.split())
    monkeypatch.setattr(hardware, "_commit", lambda: "0123456789ab")
    assert unknown in " ".join(handclip("evaluate", config).out.split())
    [provenance] = here.glob("eval_logs/*/provenance.json")
    provenance.write_bytes(provenance.read_bytes()[:-9])
    assert "provenance.json: is damaged or was changed" in handclip("evaluate", config).out


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
    answer = handclip("prepare", "11k", "--root", hands, "--out", "manifests", "--seed", 3)
    assert answer.code == 0
    assert "11k dorsal_r" in answer.out
    summary = json.loads((here / "manifests" / "summary.json").read_text())
    assert list(summary) == ["dorsal_r", "dorsal_l", "palmar_r", "palmar_l"]
    for aspect, found in summary.items():
        assert {key: found[key] for key in COUNTS} == COUNTS
        assert len(found["sha256"]) == 64
        assert handclip("prepare", "--check", here / "manifests" / f"manifest_{aspect}.json").code == 0

    before = {path: path.stat().st_mtime_ns for path in (here / "manifests").iterdir()}
    again = handclip("prepare", "11k", "--root", hands, "--out", "manifests", "--seed", 3)
    assert again.code == 0
    assert "(unchanged)" in again.out
    other = handclip("prepare", "11k", "--root", hands, "--out", "manifests", "--seed", 4)
    assert other.code == 1
    assert "manifests already holds other manifests" in other.err
    assert {path: path.stat().st_mtime_ns for path in (here / "manifests").iterdir()} == before


def test_prepare_a_folder_with_names_of_any_alphabet(handclip: Handclip, here: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("Łucja", "Анна", "明子", "عمر", "zoë", "O'Neill, P.", "🖐", "7"):
        (here / "people" / name).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(here / "people" / name / f"手 {number}.png")
    answer = handclip("prepare", "folder", "--root", "people", "--out", "manifests")
    assert answer.code == 0
    [summary] = json.loads((here / "manifests" / "summary.json").read_text()).values()
    assert (summary["train_identities"], summary["test_identities"]) == (4, 4)
    values = baseline_values(here / "manifests", dataset="folder", aspect="hand")
    assert handclip("evaluate", write_config(here / "folder.yml", values)).code == 0
    assert "Анна" in (here / "manifests" / "manifest_hand.json").read_text() or "明子" in answer.out


def test_d59_check_fails_on_a_breach(handclip: Handclip, manifests: Path, hands: Path, here: Path) -> None:
    good = manifests / "manifest_dorsal_r.json"
    assert handclip("prepare", "--check", good).code == 0
    edited = here / "edited.json"
    edited.write_text(good.read_text().replace('"seed": 0', '"seed": 1'))
    answer = handclip("prepare", "--check", edited)
    assert answer.code == 1
    assert str(edited) in answer.err

    shutil.copytree(hands, here / "hands")
    assert handclip("prepare", "11k", "--root", "hands", "--out", "manifests").code == 0
    image = next((here / "hands" / "Hands").iterdir())
    image.write_bytes(image.read_bytes() + b"more")
    for manifest in (here / "manifests").glob("manifest_*.json"):
        if image.name in manifest.read_text():
            answer = handclip("prepare", "--check", manifest)
            assert answer.code == 1
            assert f"1 have another size (Hands/{image.name})" in answer.err


def test_help_names_the_commands(handclip: Handclip) -> None:
    answer = handclip("--help")
    assert answer.code == 0
    for command in ("prepare", "train", "evaluate", "demo"):
        assert command in answer.out
        assert handclip(command, "--help").code == 0


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["trian"], "'train'"),
        (["evalute", "a.yml"], "'evaluate'"),
        (["train", "a.yml", "--resum"], "--resume"),
        (["prepare", "11k", "--rot", "x"], "--root"),
        (["prepare", "12k"], "11k"),
    ],
)
def test_a_wrong_command_or_option_suggests_the_right_one(arguments: list[str], hint: str, handclip: Handclip) -> None:
    answer = handclip(*arguments)
    assert answer.code == 2
    assert hint in answer.err


def test_prepare_says_what_it_needs(handclip: Handclip) -> None:
    answer = handclip("prepare", "11k")
    assert answer.code == 2
    assert "handclip prepare 11k --root DIR --out DIR" in answer.err


def test_the_installed_command_answers() -> None:
    script = Path(sys.executable).with_name("handclip")
    if not script.is_file():
        pytest.skip("handclip is not installed here as a command")
    answer = subprocess.run([str(script), "--help"], capture_output=True, text=True, check=True)
    assert "Usage" in answer.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """So it answers at once; how soon that is, the benchmark of the start-up measures."""
    code = (
        f"import sys\nfrom handclip.cli import main\nsys.argv = ['handclip', *{arguments}]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'lightning', 'open_clip', 'numpy', 'matplotlib', 'PIL', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert len(sys.modules) < 1000, len(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env={**os.environ, "TERM": "dumb"})


def test_the_version(handclip: Handclip) -> None:
    answer = handclip("--version")
    assert (answer.code, answer.out) == (0, f"handclip {__version__}\n")


def test_check_takes_a_folder(handclip: Handclip, manifests: Path) -> None:
    answer = handclip("prepare", "--check", manifests)
    assert answer.code == 0
    assert answer.out.count("keeps to the protocol") == 4


def test_an_evaluation_ends_with_its_averages(handclip: Handclip, manifests: Path, here: Path) -> None:
    answer = handclip("evaluate", write_config(here / "baseline.yml", baseline_values(manifests)))
    *_, averages = answer.out.split("Averages")
    for setting in ("gallery     flip none", "gallery     flip sum", "gallery_all flip none", "gallery_all flip sum"):
        assert setting in averages


def test_a_model_is_evaluated_on_data_that_it_was_not_trained_on(
    handclip: Handclip, manifests: Path, here: Path
) -> None:
    config = write_config(here / "tiny.yml", tiny_values(manifests, epochs=1))
    palmar = ("--set", "aspect=palmar_l")
    neither = handclip("evaluate", config, *palmar)
    assert neither.code == 2
    assert "neither saved_models/" in neither.err

    assert handclip("train", config).code == 0
    answer = handclip("evaluate", config, *palmar)
    assert answer.code == 0, answer.err
    [metrics] = here.glob("eval_logs/*_on_11k_palmar_l_*/metrics.json")
    [checkpoint] = here.glob("saved_models/*dorsal_r*[!t].pth")
    assert json.loads(metrics.read_text())["checkpoint"] == str(checkpoint.relative_to(here))
    assert f"Evaluating {checkpoint.stem}, trained on 11k dorsal_r, on 11k palmar_l" in " ".join(answer.err.split())
    assert "Cross-domain:     trained on 11k dorsal_r" in answer.out

    # Trained there as well, the run of that aspect is evaluated, and the way to the other is told.
    assert handclip("train", config, *palmar).code == 0
    both = handclip("evaluate", config, *palmar)
    assert both.code == 0, both.err
    assert f"--set checkpoint=saved_models/{checkpoint.name}" in "".join(both.err.split("\n"))
    assert "Cross-domain" not in both.out
    other = handclip("evaluate", config, *palmar, "--set", f"checkpoint={checkpoint.relative_to(here)}")
    assert "Cross-domain" in other.out
    assert len(list(here.glob("eval_logs/*"))) == 2


def test_the_log_of_a_named_checkpoint_is_about_that_checkpoint(
    handclip: Handclip, manifests: Path, here: Path
) -> None:
    config = write_config(here / "tiny.yml", tiny_values(manifests, epochs=1))
    assert handclip("train", config).code == 0
    [checkpoint] = here.glob("saved_models/*[!t].pth")
    by_another = ("--set", "experiment=another", "--set", f"checkpoint={checkpoint.relative_to(here)}")
    answer = handclip("evaluate", config, *by_another, "--set", "epochs=9")
    assert answer.code == 0, answer.err
    [log] = here.glob("eval_logs/*/eval.log")
    assert log.parent.name == checkpoint.stem
    assert "Experiment:       tiny\n" in log.read_text() and "another" not in log.read_text()


def test_another_data_set_leaves_the_place_of_the_first_behind(handclip: Handclip, manifests: Path, here: Path) -> None:
    values = baseline_values(manifests, aspect="palmar_l", data_root="nowhere")
    config = write_config(here / "baseline.yml", values)
    answer = handclip("evaluate", config, "--set", "dataset=hd")
    assert answer.code == 2
    assert "data_root: datasets/HD: there is no such folder" in " ".join(answer.err.split())


def test_reranking_from_the_command_line(handclip: Handclip, manifests: Path, here: Path) -> None:
    config = write_config(here / "baseline.yml", baseline_values(manifests))
    refused = handclip("evaluate", config, "--set", "rerank={}")
    assert refused.code == 1
    assert refused.err.startswith("Error: rerank: 11k dorsal_r, gallery: each identity of the gallery has one image")
    wrong = handclip("evaluate", config, "--set", "rerank.lamda=0.5")
    assert (wrong.code, "unknown key 'rerank.lamda'. Did you mean 'lambda'?" in wrong.err) == (2, True)
    assert handclip("evaluate", config, "--set", "rerank=none").code == 0
