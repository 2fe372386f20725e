"""Ctrl-C and SIGTERM during training: the step under way is finished and saved, and none is lost or repeated."""

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import TinyRun, assert_same_run
from tiny_study import LOSSES, tiny_config, write_config

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.torch_dataset import Batch, ImageDataset
from handclip.errors import Interrupted, TrainingError
from handclip.files import read_json_object
from handclip.models.embedding_model import EmbeddingModel
from handclip.runs import train as train_module
from handclip.runs.result import TrainingResult
from handclip.runs.run_folder import RunFolder
from handclip.runs.train import train
from handclip.training.step import Step

STEPS = 9
"""Three epochs of three steps."""

VARIANTS: dict[str, dict[str, Any]] = {
    "arcface": {"losses": LOSSES["ce_arcface"], "neck": "hidden", "warmup_epochs": 1.5},
    "centres": {"losses": LOSSES["ce_triplet_center"], "neck": "bnneck", "early_stopping_patience": 9},
    "plain": {"losses": LOSSES["ce"]},
}


def config_of(manifests: Path, place: Path, variant: str, **changes: Any) -> ExperimentConfig:
    places = {"output_dir": str(place / "train_logs"), "save_dir": str(place / "saved_models")}
    augmentation = {"flip": 0.5, "resize_crop": 1.2}
    values = {"epochs": 3, "batch_size": 4, "augmentation": augmentation, **VARIANTS[variant], **places}
    return tiny_config(manifests, **values, **changes)


class Watch:
    """Sees every step of training, and does something in some of them."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.images: list[float] = []
        self.then: Callable[[int], None] = lambda number: None


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    watch = Watch()
    call = Step.__call__

    def watched(self: Step, batch: Batch, number: int) -> Any:
        watch.steps.append(number)
        watch.images.append(float(batch.images.double().sum()))
        output = call(self, batch, number)
        watch.then(number)
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", watched)
        yield watch


@pytest.fixture(scope="module")
def undisturbed(
    manifests: Path, watch: Watch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[TrainingResult, list[float]]]:
    """Each variant's run in one go, with the sums of its images, step by step."""
    done: dict[str, tuple[TrainingResult, list[float]]] = {}

    def run(variant: str) -> tuple[TrainingResult, list[float]]:
        if variant not in done:
            watch.steps, watch.images = [], []
            result = train(config_of(manifests, tmp_path_factory.mktemp(variant), variant))
            assert watch.steps == list(range(STEPS))
            done[variant] = result, watch.images
        return done[variant]

    return run


def train_with_stops(config: ExperimentConfig, watch: Watch, stops: Sequence[int]) -> tuple[TrainingResult, list[str]]:
    """Train, and send SIGTERM to this process within each of these steps; return what each stop says."""
    said, left, others = [], sorted(stops), set(multiprocessing.active_children())

    def stop(number: int) -> None:
        if left and number == left[0]:
            left.pop(0)
            signal.raise_signal(signal.SIGTERM)

    watch.steps, watch.images, watch.then = [], [], stop
    try:
        while True:
            try:
                return train(config, resume=True), said
            except Interrupted as stopped:
                assert stopped.exit_code == 143
                said.append(stopped.advice)
                assert not set(multiprocessing.active_children()) - others, "processes that read images are left"
    finally:
        watch.then = lambda number: None


@pytest.mark.promise("exact-resume")
@pytest.mark.parametrize(
    ("variant", "workers", "stops"),
    [("arcface", 0, [0, 4, 8]), ("centres", 1, [3, 4, 7])],
)
def test_stopping_in_mid_epoch_loses_no_step_and_repeats_none(
    variant: str,
    workers: int,
    stops: list[int],
    manifests: Path,
    tmp_path: Path,
    watch: Watch,
    undisturbed: Callable[[str], tuple[TrainingResult, list[float]]],
) -> None:
    whole, images = undisturbed(variant)
    result, said = train_with_stops(config_of(manifests, tmp_path, variant, num_workers=workers), watch, stops)
    assert watch.steps == list(range(STEPS))
    assert watch.images == images
    assert_same_run(result, whole)
    assert said == [
        f"Everything up to epoch {stop // 3 + 1}, step {stop % 3 + 1} is saved."
        if stop % 3 < 2
        else f"All steps of epoch {stop // 3 + 1} are saved. Its validation is done when training goes on."
        for stop in stops
    ]


@pytest.mark.promise("signal-in-validation", "signal-while-reading")
def test_a_signal_while_images_are_read_or_a_model_is_validated_loses_no_step(
    manifests: Path,
    tmp_path: Path,
    watch: Watch,
    undisturbed: Callable[[str], tuple[TrainingResult, list[float]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waits for no image, and a validation that it has ended is done when training goes on."""
    whole, images = undisturbed("centres")
    config = config_of(manifests, tmp_path, "centres", eval_batch_size=2)
    embed, embedded = EmbeddingModel.embed, 0
    read, count = ImageDataset.__getitem__, 0
    # Of all images that are read: one of the first batch, two of the third, which is then begun a third time, one of a
    # validation, and one of the second epoch. Of all batches that are validated, six in an epoch: two of the first.
    reads, embeds = [2, 12, 13, 27, 51], [3, 7]

    def embed_and_stop(self: EmbeddingModel, batch: torch.Tensor) -> torch.Tensor:
        nonlocal embedded
        embedded += 1
        if embedded in embeds:
            signal.raise_signal(signal.SIGTERM)
        return embed(self, batch)

    def read_and_stop(self: ImageDataset, item: Any) -> Any:
        nonlocal count
        count += 1
        if count in reads:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("the signal has waited for the image")
        return read(self, item)

    monkeypatch.setattr(EmbeddingModel, "embed", embed_and_stop)
    monkeypatch.setattr(ImageDataset, "__getitem__", read_and_stop)
    watch.steps, watch.images, said = [], [], []
    for _ in (*reads, *embeds):
        with pytest.raises(Interrupted) as stopped:
            train(config, resume=True)
        said.append(stopped.value.advice)
        # However often it was stopped, the same steps are saved once.
        assert len(list(RunFolder.of(config).snapshots.glob("*.ckpt"))) == min(len(set(said)) - 1, 2)
    result = train(config, resume=True)
    validating = "All steps of epoch 1 are saved. Its validation is done when training goes on."
    assert said == [
        "No step of this run is saved yet.",
        "Everything up to epoch 1, step 2 is saved.",
        "Everything up to epoch 1, step 2 is saved.",
        validating,
        validating,
        validating,
        "Everything up to epoch 2, step 1 is saved.",
    ]
    assert (watch.steps, watch.images) == (list(range(STEPS)), images)
    assert_same_run(result, whole)


@pytest.mark.parametrize("stop", [10, 14], ids=["a batch's", "a validation's"])
def test_a_disk_that_is_full_after_a_signal_is_not_kept_quiet(
    stop: int, manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, count = ImageDataset.__getitem__, 0

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read_and_stop(self: ImageDataset, item: Any) -> Any:
        nonlocal count
        count += 1
        if count == stop:
            monkeypatch.setattr("handclip.files.os.fsync", full)
            signal.raise_signal(signal.SIGTERM)
        return read(self, item)

    monkeypatch.setattr(ImageDataset, "__getitem__", read_and_stop)
    with pytest.raises(TrainingError, match=r"No space left on device\. Mend that, then go on with --resume"):
        train(config_of(manifests, tmp_path, "plain"))


@pytest.mark.promise("second-signal")
def test_a_second_signal_stops_at_once_and_the_last_state_is_gone_on_from(
    manifests: Path, tmp_path: Path, watch: Watch, undisturbed: Callable[[str], tuple[TrainingResult, list[float]]]
) -> None:
    whole, _ = undisturbed("plain")
    config = config_of(manifests, tmp_path, "plain")

    def twice(number: int) -> None:
        if number == 4:
            assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    watch.then = twice
    try:
        with pytest.raises(Interrupted) as stopped:
            train(config)
    finally:
        watch.then = lambda number: None
    assert (stopped.value.exit_code, stopped.value.advice) == (130, "Everything up to epoch 1 is saved.")
    watch.steps = []
    assert_same_run(train(config, resume=True), whole)
    assert watch.steps == list(range(3, STEPS))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_after_the_last_step_is_not_forgotten(tmp_path: Path) -> None:
    """A study would go on to its next run."""
    run = TinyRun(tmp_path, epochs=1)
    run.train(0.5)
    with pytest.raises(Interrupted) as stopped, train_module._stopping(run.saved, run.state):
        signal.raise_signal(signal.SIGTERM)
    assert (stopped.value.exit_code, stopped.value.advice) == (143, "Everything up to epoch 1 is saved.")


_TRAIN_UNTIL_SIGNALLED = """
import sys, time
from pathlib import Path
from handclip.cli import main
from handclip.training.step import Step

step = Step.__call__

def step_or_wait(self, batch, number):
    for _ in range(6000 if number == 5 else 0):
        if Path("signalled").exists():
            break
        time.sleep(0.01)
    return step(self, batch, number)

Step.__call__ = step_or_wait
main()
"""
"""The command line, which does not end the second epoch before the signal is sent, however slowly that is done."""


@pytest.mark.promise("signal")
@pytest.mark.parametrize(("signum", "code", "workers"), [(signal.SIGINT, 130, 0), (signal.SIGHUP, 129, 1)])
def test_a_signal_to_the_command_and_all_its_processes(
    signum: signal.Signals,
    code: int,
    workers: int,
    manifests: Path,
    here: Path,
    undisturbed: Callable[[str], tuple[TrainingResult, list[float]]],
) -> None:
    config = config_of(manifests, here, "plain", num_workers=workers)
    file = write_config(here / "tiny.yml", config.to_dict())
    with subprocess.Popen(
        [sys.executable, "-c", _TRAIN_UNTIL_SIGNALLED, "train", file.name],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        start_new_session=True,
        # A test run in the background may have been told to ignore signals, and a child inherits that.
        preexec_fn=partial(signal.signal, signum, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("Epoch 1/"):
                os.killpg(process.pid, signum)
                Path("signalled").touch()
                break
        lines += process.stderr.readlines()
    printed = "".join(lines)
    assert process.returncode == code, printed
    assert re.fullmatch(
        r"Interrupted\. (Everything up to epoch \d+(, step \d+)? is saved\.|All steps of epoch \d+ are saved\. .*) "
        r"To go on, give the same command again, "
        r"with --resume: handclip train tiny\.yml --resume\n",
        lines[-1],
    ), printed
    # One plain line for each thing that happened, and nothing of the libraries' own.
    assert not [word for word in ("Traceback", "Warning", "GPU", "TPU", "Trainer.fit", "Tip") if word in printed]
    files = RunFolder.of(config)
    assert not files.result.exists()
    assert read_json_object(files.folder / "provenance.json")["sessions"][-1]["exit"] == f"interrupted by {signum.name}"
    whole, _ = undisturbed("plain")
    assert_same_run(train(config, resume=True), whole)
