import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_study import LOSSES, baseline_values, metrics_without_time, tiny_values, write_config

REPOSITORY = Path(__file__).parents[2]
EVALUATOR = "run_eval_clip.py"
VARIANTS = "experiments/stage2_finetune_image_encoder_loss_variants/train_stage2_loss_variants.py"

RunHere = Callable[..., tuple[int, str, str]]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script as its users do, from the repository's root."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment.pop("COLUMNS", None)
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunHere:
    """Run a script in this process, which saves the seconds that importing torch takes."""

    def run(script: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        return (int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.mark.slow
def test_the_unified_evaluator(run_here: RunHere, manifests: Path, tmp_path: Path) -> None:
    values = baseline_values(manifests, eval_dir=str(tmp_path / "eval_logs"))
    config = write_config(tmp_path / "baseline.yml", values)
    answer = run(EVALUATOR, "--config", config)
    assert answer.returncode == 0, answer.stderr
    [metrics] = tmp_path.glob("eval_logs/*/metrics.json")
    assert str(metrics.parent / "eval.log") in answer.stdout
    for line in (f"Config:           {config}", "  Split  1/3: Rank-1", "  Average:     Rank-1"):
        assert line in answer.stdout
    before = metrics_without_time(metrics)
    code, out, _ = run_here(EVALUATOR, config)
    assert code == 0
    assert "  Average:     Rank-1" in out
    assert metrics_without_time(metrics) == before


@pytest.mark.parametrize("arguments", [[], ["--config", "missing.yml", "missing.yml"], ["--config", "missing.yml"]])
def test_d57_the_unified_evaluator_fails_with_an_exit_code(arguments: list[str], run_here: RunHere) -> None:
    code, _, err = run_here(EVALUATOR, *arguments)
    assert code == 2
    assert err.startswith("Error: ")


def places(folder: Path) -> dict[str, str]:
    return {key: str(folder / key) for key in ("output_dir", "save_dir", "eval_dir")}


@pytest.mark.slow
def test_d18_the_loss_variants_are_trained_evaluated_and_compared(
    run_here: RunHere, manifests: Path, tmp_path: Path
) -> None:
    (tmp_path / "configs").mkdir()
    for name in ("ce", "ce_triplet"):
        values = tiny_values(manifests, losses=LOSSES[name], epochs=1, **places(tmp_path))
        write_config(tmp_path / "configs" / f"train_{name}.yml", values)
    arguments = ["--configs", tmp_path / "configs", "--out", tmp_path / "result_logs"]
    code, out, err = run_here(VARIANTS, *arguments)
    assert code == 0, err
    assert "[2/2] stage 1, vit_small: ce + triplet; 11k dorsal_r, seed 0" in err
    for text in ("gallery_all", "Rank-1", "mAP trapezoid", "ce + triplet"):
        assert text in out
    [folder] = (tmp_path / "result_logs").iterdir()
    assert re.fullmatch("stage2_loss_variants_[0-9a-f]{8}", folder.name)
    names = {path.name for path in folder.iterdir()}
    assert names == {*(f"comparison.{kind}" for kind in ("md", "csv", "tex", "json")), "differences.csv"}
    assert len(list((tmp_path / "eval_dir").glob("*/eval.log"))) == 2
    blocks = json.loads((folder / "comparison.json").read_text())["blocks"]
    losses = [["cross_entropy"], ["cross_entropy", "triplet"]]
    assert [[row["losses"] for row in block["rows"]] for block in blocks] == [losses] * len(blocks)

    assert run_here(VARIANTS, *arguments)[0] == 1
    code, _, err = run_here(VARIANTS, *arguments, "--resume")
    assert code == 0
    assert err.count("has already ended") == 2
    alone = ["--config", tmp_path / "configs" / "train_ce_triplet.yml", "--set", "aspect=palmar_l"]
    code, _, err = run_here(VARIANTS, *alone, "--out", tmp_path / "out")
    assert code == 0, err
    [table] = (tmp_path / "out").glob("*/comparison.json")
    blocks = json.loads(table.read_text())["blocks"]
    assert {block["protocol"]["aspect"] for block in blocks} == {"palmar_l"}
    assert [[row["losses"] for row in block["rows"]] for block in blocks] == [losses[1:]] * len(blocks)


def test_variants_whose_stage_1_is_not_there(run_here: RunHere, manifests: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        values = tiny_values(manifests, resume_from=f"saved_models/{name}.pth", **places(tmp_path))
        write_config(tmp_path / f"{name}.yml", values)
    answer = run(VARIANTS, "--configs", tmp_path)
    assert answer.returncode == 2
    assert "which is not there yet: saved_models/a.pth, saved_models/b.pth" in answer.stderr
    code, _, err = run_here(VARIANTS, "--configs", tmp_path, "--model", "none")
    assert (code, err) == (2, f"Error: {tmp_path}: there are no experiment files (train_none_*.yml)\n")


def test_a_variant_that_fails_does_not_stop_the_others(run_here: RunHere, manifests: Path, tmp_path: Path) -> None:
    for number, batch_size in enumerate((64, 8)):
        own = {"batch_size": batch_size, "losses": LOSSES["ce_triplet"], **places(tmp_path)}
        values = tiny_values(manifests, epochs=1, **own)
        write_config(tmp_path / f"train_vit_small_{number}.yml", values)
    (tmp_path / "train_other_model.yml").write_text("not: chosen")
    arguments = ["--configs", tmp_path, "--model", "vit_small", "--out", tmp_path / "out"]
    code, out, err = run_here(VARIANTS, *arguments)
    assert code == 1
    assert "1 of 2 runs failed" in err
    assert "a batch needs 32 identities" in err
    assert "Rank-1" in out
