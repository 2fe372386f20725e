"""Training and evaluation in two processes (CPU, gloo) give what they give in one."""

import logging
import multiprocessing
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import (
    LOSSES,
    loss_columns,
    metrics_without_time,
    read_table,
    tiny_config,
    tiny_values,
    weights,
    write_config,
)

from handclip.config.experiment import ExperimentConfig
from handclip.errors import ConfigError
from handclip.parallel import hardware, launching
from handclip.parallel.launching import launched, on_devices, starts_processes
from handclip.parallel.processes import Processes
from handclip.runs.evaluate import evaluate
from handclip.runs.result import TrainingResult
from handclip.runs.train import train
from handclip.studies import run_and_compare

VIT = {
    "losses": LOSSES["ce_triplet_center"],
    "neck": "bnneck",
    "batch_size": 9,  # five images for one process, and four for the other
    "images_per_identity": 3,
    "augmentation": {"flip": 0.5, "resize_crop": 1.2},
    "early_stopping_patience": 9,
}
MBANET = {
    "model": "mbanet_small",
    "input_size": 64,
    "losses": LOSSES["ce_triplet"],
    "neck": "hidden",
    "memory_format": "channels_last",
}
"""Batch norms in the encoder, three of them called three times a step, and dropout behind it."""


@dataclass(frozen=True)
class Place:
    """Where a run and its evaluation are written."""

    folder: Path
    manifests: Path

    def config(self, **changes: Any) -> ExperimentConfig:
        places = {"output_dir": "train_logs", "save_dir": "saved_models", "eval_dir": "eval_logs"}
        own = {key: str(self.folder / name) for key, name in places.items()}
        return tiny_config(self.manifests, pixel_cache_gib=0, eval_batch_size=4, **{**own, **changes})


@pytest.fixture(scope="module")
def places(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Place]:
    names = ("vit, one", "vit, two", "mbanet, one", "mbanet, two")
    return {name: Place(tmp_path_factory.mktemp(name.replace(", ", "_")), manifests) for name in names}


@pytest.fixture(scope="module")
def vit(places: dict[str, Place]) -> tuple[TrainingResult, TrainingResult]:
    """The same run by one process and by two."""
    log = logging.getLogger("handclip")
    alone = train(places["vit, one"].config(**VIT))
    assert not starts_processes(places["vit, one"].config(**VIT))
    assert starts_processes(places["vit, two"].config(**VIT, devices=2))
    together = train(places["vit, two"].config(**VIT, devices=2))
    assert not log.disabled
    assert all(process.daemon for process in multiprocessing.active_children())  # other tests' readers of images
    return alone, together


def go_on_and_evaluate(config: ExperimentConfig, trained: ExperimentConfig) -> TrainingResult:
    """Go on with one run and evaluate the model of another, in the processes that there are."""
    evaluate(trained)
    return train(config, resume=True)


@pytest.fixture(scope="module")
def mbanet(
    places: dict[str, Place], vit: tuple[TrainingResult, TrainingResult]
) -> tuple[TrainingResult, TrainingResult]:
    """A run by one process; and one begun by one process that two go on with, which also evaluate the ViT."""
    alone = train(places["mbanet, one"].config(**MBANET))
    train(places["mbanet, two"].config(**MBANET), stop_after=1)
    evaluate(places["vit, one"].config(**VIT))
    trained = places["vit, one"].config(**VIT, eval_dir=str(places["vit, two"].folder / "eval_logs"))
    together = on_devices(go_on_and_evaluate, places["mbanet, two"].config(**MBANET, devices=2), trained=trained)
    return alone, together


def assert_near(alone: TrainingResult, together: TrainingResult, of_weights: float = 1e-3) -> None:
    assert (alone.run, alone.best_epoch, alone.epochs) == (together.run, together.best_epoch, together.epochs)
    rows, others = (loss_columns(result.folder / "metrics.csv") for result in (alone, together))
    assert len(rows) == len(others) == 2
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            tolerance = 2e-4 if name.startswith("loss_") else 0  # validation and learning rates are the very same
            assert float(other[name]) == pytest.approx(float(value), rel=tolerance), name
    states = weights(alone.last_checkpoint), weights(together.last_checkpoint)
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(
            states[1][name], value, rtol=of_weights, atol=of_weights, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_vit_learns_the_same_in_two_processes(vit: tuple[TrainingResult, TrainingResult]) -> None:
    assert_near(*vit)


def test_an_mbanet_goes_on_the_same_in_two_processes(mbanet: tuple[TrainingResult, TrainingResult]) -> None:
    # Adam's step of 1e-3 follows the sign of a gradient that is all but zero. In one process, to go from one memory
    # format to the other changes the weights and statistics by more.
    assert_near(*mbanet, of_weights=1e-2)


def test_two_processes_write_what_one_writes(vit: tuple[TrainingResult, TrainingResult]) -> None:
    files = []
    for result in vit:
        folders = (result.folder, result.checkpoint.parent)
        names = [path.relative_to(folder) for folder in folders for path in folder.rglob("*") if path.is_file()]
        # A state's name ends with the hash of its content, which holds how long it took.
        files.append(sorted(str(name).partition("-")[0] for name in names if "tfevents" not in name.name))
        assert len(list(result.folder.rglob("*tfevents*"))) == 1
    assert files[0] == files[1]
    log = (vit[1].folder / "train.log").read_text()
    assert log.count("2 processes share each batch of 9 images") == 1
    assert log.count(": total") == 2
    # The images of both count.
    for row in read_table(vit[1].folder / "metrics.csv"):
        steps = 2
        speed, seconds = float(row["images_per_second"]), float(row["seconds"])
        assert speed * seconds == pytest.approx(9 * steps, abs=0.006 * speed + 0.06 * seconds)  # as they are rounded


def test_two_processes_measure_exactly_what_one_measures(
    places: dict[str, Place], mbanet: tuple[TrainingResult, TrainingResult]
) -> None:
    folders = [next((places[name].folder / "eval_logs").iterdir()) for name in ("vit, one", "vit, two")]
    assert metrics_without_time(folders[0] / "metrics.json") == metrics_without_time(folders[1] / "metrics.json")
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted(path.name for path in folders[1].iterdir())
    for name in ("per_query.csv", "per_split.csv", "features.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_torchrun_shares_out_an_evaluation(
    places: dict[str, Place], vit: tuple[TrainingResult, TrainingResult], here: Path
) -> None:
    place = places["vit, one"]
    values = tiny_values(place.manifests, pixel_cache_gib=0, **VIT, save_dir=str(place.folder / "saved_models"))
    config = write_config(here / "tiny.yml", values)
    handclip = Path(sys.executable).with_name("handclip")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]

    def run(*changes: str) -> subprocess.CompletedProcess[str]:
        changed = [text for change in changes for text in ("--set", change)]
        return subprocess.run(
            [*command, str(handclip), "evaluate", str(config), *changed], capture_output=True, text=True, timeout=300
        )

    refused = run()
    assert refused.returncode != 0
    message = "Error: devices: 1 and num_nodes: 1 do not fit the 2 processes on 1 machine(s) that were started"
    assert message in refused.stderr
    done = run("devices=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Log: ") == 1
    found = metrics_without_time(next(here.glob("eval_logs/*/metrics.json")))
    evaluate(place.config(**VIT, eval_dir=str(here / "alone")))
    assert found["results"] == metrics_without_time(next(here.glob("alone/*/metrics.json")))["results"]


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN])
def test_a_launcher_is_recognised(
    variables: dict[str, str], manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launched() is None and launching.is_first_launched()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched() == Processes(rank=5, size=8, local_rank=1, local_size=4)
    assert not launching.is_first_launched()
    assert not starts_processes(tiny_config(manifests, devices=4, num_nodes=2))
    with pytest.raises(ConfigError, match=r"^devices: auto and num_nodes: 1 do not fit the 8 processes on 2 machine"):
        on_devices(evaluate, tiny_config(manifests, devices="auto"))
    with pytest.raises(ConfigError, match=r"^A study cannot be started by torchrun or srun"):
        run_and_compare([], here / "out", resume=True)


@pytest.mark.parametrize(
    "variables", [{"SLURM_STEP_NUM_TASKS": "7"}, {"SLURM_STEP_TASKS_PER_NODE": "3,5"}], ids=["odd", "uneven"]
)
def test_machines_that_do_not_have_as_many_processes_are_refused(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == Processes(rank=5, size=8, local_rank=1, local_size=4)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"^srun has started [78] processes on 2 machines, .* --ntasks-per-node$"):
        launched()


def test_of_launched_processes_the_first_says_that_a_run_has_ended(
    stage1: TrainingResult, manifests: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "handclip")
    place = stage1.folder.parents[1]
    places = {"output_dir": str(place / "train_logs"), "save_dir": str(place / "saved_models")}
    config = tiny_config(manifests, experiment="stage1", losses=LOSSES["ce"], **places)
    for rank in ("1", "0"):
        assert "has already ended" not in caplog.text
        for name, value in {**TORCHRUN, "RANK": rank}.items():
            monkeypatch.setenv(name, value)
        assert train(config, resume=True) == stage1
    assert caplog.text.count("has already ended") == 1


def test_one_process_that_a_launcher_starts_is_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert launched() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 3, "device": "cuda"}, r"^devices: 3: this machine has 2 CUDA devices$"),
        ({"devices": 2, "device": "cuda:1"}, r"^devices: 2 do not go with device: cuda:1, .* CUDA_VISIBLE_DEVICES$"),
        ({"devices": 2, "device": "mps"}, r"^devices: 2: a Mac has one GPU"),
        ({"devices": "auto", "num_nodes": 4, "device": "auto"}, r"^num_nodes: 4: .* --nnodes 4 --nproc-per-node 2 "),
        ({"num_nodes": 2, "device": "cpu"}, r"^num_nodes: 2: .* --nnodes 2 --nproc-per-node 1 .*docs/many_devices.md$"),
    ],
)
def test_devices_that_are_not_there_are_an_error(
    changes: dict[str, Any], message: str, manifests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=message):
        on_devices(evaluate, tiny_config(manifests, **changes))


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_cores", lambda: 12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert hardware.choose_workers("auto") == 2
    assert hardware.choose_workers(5) == 5
