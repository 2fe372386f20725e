"""Going on from a run, and evaluating its last model, without copying its name."""

import json
from dataclasses import replace
from pathlib import Path

from command_line import Handclip, changes
from tiny_study import LOSSES, tiny_values, write_config

from handclip.config.loading import read_yaml
from handclip.models.checkpoint import Checkpoint


def test_stage_2_names_stage_1_by_its_config_or_its_folder(handclip: Handclip, manifests: Path, here: Path) -> None:
    values = tiny_values(manifests, epochs=1, pretrained="none")
    write_config(here / "stage1.yml", {**values, "experiment": "stage1"})
    stage2 = write_config(here / "stage2.yml", {**values, "losses": LOSSES["ce_triplet"], "resume_from": "stage1.yml"})
    assert "is not there. Train it first: handclip train stage1.yml" in handclip.refused("train", "stage2.yml")
    assert sorted(path.name for path in here.iterdir()) == ["stage1.yml", "stage2.yml"]

    handclip.ok("train", "stage1.yml")
    [run] = (here / "train_logs").iterdir()
    model = f"saved_models/{run.name}.pth"
    answer = handclip.ok("train", "stage2.yml")
    assert f"Goes on from {model}\n" in answer.err
    assert "Taken over from the earlier stage: the encoder and 2 of 2 tensors" in answer.err
    [second] = {*(here / "train_logs").iterdir()} - {run}
    assert read_yaml(second / "config.yml")["resume_from"] == model
    # However it is named, it is the same run.
    for named in (f"train_logs/{run.name}", model):
        said = handclip.refused("train", stage2, *changes(resume_from=named), code=1)
        assert f"{second.name} exists already: this run has ended" in said
    handclip.ok("evaluate", "stage2.yml")
    assert (here / "eval_logs" / second.name / "metrics.json").is_file()


def test_the_last_model_is_evaluated_beside_the_best(handclip: Handclip, manifests: Path, here: Path) -> None:
    config = write_config(here / "tiny.yml", tiny_values(manifests, epochs=1, explained_images=0))
    handclip.ok("train", config)
    [run] = (here / "train_logs").iterdir()
    best, last = (here / "saved_models" / f"{name}.pth" for name in (run.name, f"{run.name}_last"))
    checkpoint = Checkpoint.load(last)  # after one epoch it is the best, too
    other = {key: value + 0.1 if value.is_floating_point() else value for key, value in checkpoint.model_state.items()}
    replace(checkpoint, model_state=other).save(last)

    for arguments in ([], *(changes(checkpoint=one) for one in (last, best, run))):
        handclip.ok("evaluate", config, *arguments)
    handclip.ok("evaluate", config, *changes(checkpoint=last, aspect="palmar_l", rerank="none"))
    names = [run.name, f"{run.name}_last", f"{run.name}_last_on_11k_palmar_l_"]
    found = sorted(path for path in (here / "eval_logs").iterdir())
    assert [path.name[: len(name)] for path, name in zip(found, names, strict=True)] == names
    metrics = [json.loads((path / "metrics.json").read_text()) for path in found]
    assert [one["run"] for one in metrics] == [path.name for path in found]
    assert [Path(one["checkpoint"]).name for one in metrics] == [best.name, last.name, last.name]
    assert metrics[0]["weights_sha256"] != metrics[1]["weights_sha256"] == metrics[2]["weights_sha256"]
    handclip.ok("audit", "eval_logs", "--no-images")
    handclip.ok("compare", "eval_logs", "--out", "comparison")
    table = (here / "comparison" / "comparison.csv").read_text()
    assert f"{run.name}," in table and f"{run.name}_last," in table
