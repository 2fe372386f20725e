"""A run without images: one layer that learns from the step's number alone, and leaves the files of every run."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tiny_study import loss_columns, same_weights, weights
from torch import nn

from handclip.config.loading import parse_config
from handclip.loss.criterion import LossOutput
from handclip.models.checkpoint import Checkpoint
from handclip.parallel.hardware import Computation, describe_environment
from handclip.runs import hooks
from handclip.runs.best_checkpoint import BestCheckpoint
from handclip.runs.provenance import session
from handclip.runs.result import TrainingResult
from handclip.runs.run_folder import RunFolder, Storage
from handclip.runs.snapshots import Resumable, Snapshots
from handclip.training.loop import Hooks, fit
from handclip.training.state import Plan, TrainState
from handclip.training.step import require_finite

STEPS = 2
"""Steps an epoch."""

CPU = torch.device("cpu")


class TinyStep:
    """Batches and step in one."""

    def __init__(self, size: int) -> None:
        torch.manual_seed(0)
        self.objective = nn.Linear(size, size)
        self.optimizer = torch.optim.AdamW(self.objective.parameters())
        self.computation = Computation(CPU, "float32", "contiguous", 0, False, False)
        self.after: Callable[[int], None] = lambda number: None
        """What happens after a step, counted from 0."""

    def of_epoch(self, epoch: int, first: int) -> Iterator[Any]:
        return iter(range(first, STEPS))

    def images_in(self, number: int) -> int:
        return 4

    def __call__(self, batch: Any, number: int) -> LossOutput:
        loss = self.objective(torch.full((1, self.objective.in_features), float(number))).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.after(number)
        return LossOutput(loss.detach(), {"square": loss.detach()})

    def finish(self) -> None:
        require_finite(self.objective.state_dict(), 0)

    def learning_rates(self) -> Mapping[str, float]:
        return {"new": 1e-3}


class TinyRun:
    """A run's files, and this process's part in it: another object goes on with them as another process would."""

    def __init__(self, folder: Path, epochs: int = 4, *, size: int = 3, manifest_sha256: str = "a" * 64) -> None:
        places = {"output_dir": str(folder / "train_logs"), "save_dir": str(folder / "saved_models")}
        values = {"experiment": "tiny", "model": "vit_small", "dataset": "11k", "epochs": epochs, **places}
        self.config = parse_config(values, "test")
        self.files = RunFolder.of(self.config)
        self.plan = Plan(epochs, STEPS, validation_images=6)
        self.snapshots = Snapshots(self.files.snapshots)
        self.step: Any = TinyStep(size)
        self.storage = Storage(self.files)
        self.best = BestCheckpoint(self.storage, manifest_sha256, self.checkpoint)
        self.made_with = {"manifest_sha256": manifest_sha256, "precision": "float32"}
        self.state = TrainState(self.plan)

    def checkpoint(self, epoch: int, metrics: dict[str, float]) -> Checkpoint:
        weights = {name: value.clone() for name, value in self.step.objective.state_dict().items()}
        config, sha256 = self.config.to_dict(), self.made_with["manifest_sha256"]
        return Checkpoint(self.files.run, epoch, config, {}, {}, {}, [], [], sha256, metrics, weights, {})

    def train(self, *values: float, until: int | None = None) -> TrainState:
        """Begin or go on, where each validation finds the next of these values; stop after so many epochs."""
        self.state = TrainState(Plan(self.plan.epochs, STEPS, validation_images=6, stop_after=until))
        found = iter(values)
        self.files.open(self.config, resume=True)
        with session(self.files.folder, {"run": "tiny"}, describe_environment(CPU, "float32")) as own:
            self.saved = Resumable(self.storage, self.snapshots, self.step, self.best, own, self.made_with)
            self.saved.go_on(self.state)
            kept = [self.best.choose, hooks.write_history(self.storage), self.saved.save, self.best.write]
            fit(self.state, self.step, self.step, lambda: {"val_map": next(found)}, Hooks(after_epoch=kept))
        return self.state

    def contents(self) -> dict[str, bytes]:
        """The snapshots and checkpoints as they are."""
        folders = (self.files.snapshots, self.files.best.parent)
        return {path.name: path.read_bytes() for folder in folders for path in folder.glob("[!.]*")}


def assert_same_run(one: TrainingResult, other: TrainingResult) -> None:
    """Two runs have ended the same, to the last digit."""
    assert (one.run, one.best_epoch, one.epochs) == (other.run, other.best_epoch, other.epochs)
    assert loss_columns(one.folder / "metrics.csv") == loss_columns(other.folder / "metrics.csv")
    for ours, theirs in ((one.checkpoint, other.checkpoint), (one.last_checkpoint, other.last_checkpoint)):
        assert same_weights(weights(ours), weights(theirs))
        loaded = [Checkpoint.load(path) for path in (ours, theirs)]
        assert (loaded[0].epoch, loaded[0].metrics) == (loaded[1].epoch, loaded[1].metrics)


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
