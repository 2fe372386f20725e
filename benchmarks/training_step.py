"""A training step in bfloat16 against float32, and of the small models against each other.

A step is the one that training does: forward, losses, backward, clipping, AdamW. The reference is the same step with
`precision: float32`. Steps of the two take turns, so that whatever else the machine does slows both.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import harness
import torch
from harness import Row
from torch import Tensor

from handclip.config.loading import parse_config
from handclip.datasets.sampling import RandomBatchSampler
from handclip.datasets.torch_dataset import Batch
from handclip.datasets.transforms import ImageTransform
from handclip.loss.loss_factory import build_criterion
from handclip.models.builder import build_model
from handclip.parallel.hardware import Computation, choose_precision
from handclip.training.step import Objective, Step

IDENTITIES = 72
"""Of dorsal right in 11k Hands."""

SMALL_MODELS = {"vit_small": "bnneck", "rn_small": "bnneck", "resnet_small": "bnneck", "mbanet_small": "hidden"}
"""Each with the neck that its shipped config has."""

TARGETS = {"vitb16": 1.7, "rn50": 2.0}
BATCHES = {"vitb16": 8, "rn50": 16}

CURVE_STEPS, CURVE_BATCH, CURVE_SIZES = 50, 4, {"vitb16": 32, "rn50": 64}
TOLERANCE = 0.1
"""Largest difference between the two loss curves at any step, as a share of the first loss."""


class TrainingStep:
    """Steps of one model with random weights on given images.

    Args:
        device: where.
        steps_per_epoch: what the learning rate counts epochs by; the default is that of 900 images.
        keys: of the experiment file.
    """

    def __init__(self, device: torch.device, *, steps_per_epoch: int = 28, **keys: Any) -> None:
        values = {"experiment": "benchmark", "dataset": "11k", "pretrained": "none", **keys}
        self.config = parse_config(values, "benchmark")
        precision = choose_precision(self.config.precision, device)
        torch.manual_seed(0)
        self.model = build_model(self.config)
        if self.config.gradient_checkpointing:
            self.model.encoder.checkpoint_gradients()
        self.computation = Computation.of(self.config, self.model, device, precision)
        criterion = build_criterion(self.config.losses, IDENTITIES, self.model.encoder.embedding_dims)
        epoch = RandomBatchSampler(range(2 * steps_per_epoch), 2, seed=0)
        transform = ImageTransform(self.model.encoder.preprocessing)
        self._objective = Objective(self.config, self.model, criterion)
        self._step = Step(self.config, self._objective, transform, self.computation, epoch)
        self.optimizer, self.memory_format = self._step.optimizer, self._step.memory_format
        self._number = 0

    def batch(self, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Draw images and labels on the device."""
        random = torch.Generator().manual_seed(seed)
        pixels = self.model.encoder.preprocessing
        images = torch.randn(size, 3, pixels.height, pixels.width, generator=random)
        labels = torch.randint(IDENTITIES, (size,), generator=random)
        return images.to(self.computation.device), labels.to(self.computation.device)

    def autocast(self) -> torch.autocast:
        """Return the context of the precision, in which a whole step runs."""
        bfloat16 = self.computation.precision == "bfloat16"
        return torch.autocast(self.computation.device.type, torch.bfloat16, enabled=bfloat16)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch."""
        with self.autocast():
            images = images.contiguous(memory_format=self._step.memory_format)
            total: Tensor = self._objective(images, labels, self._number).total
            return total

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Do a step; return its loss."""
        output = self._step(Batch(images, labels, None), self._number)
        self._number = (self._number + 1) % (self.config.epochs * len(self._step.sampler))
        return output.total


def loss_curve(model: str, precision: str) -> list[float]:
    """Return the losses of 50 steps over five batches, of few and small images to take less time."""
    keys = {"input_size": CURVE_SIZES[model], "lr": 5e-4, "backbone_lr_scale": 0.1, "epochs": CURVE_STEPS // 5}
    step = TrainingStep(torch.device("cpu"), steps_per_epoch=5, model=model, precision=precision, **keys)
    batches = [step.batch(CURVE_BATCH, seed) for seed in range(5)]
    return [float(step(*batches[number % 5])) for number in range(CURVE_STEPS)]


def alternating_seconds(*steps: TrainingStep, batch: int, repeats: int) -> list[float]:
    """Return the median seconds of each one's step; they take turns."""
    batches = [step.batch(batch) for step in steps]
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats + 1):
        for step, images, found in zip(steps, batches, times, strict=True):
            start = time.perf_counter()
            step(*images)
            found.append(time.perf_counter() - start)
    return [statistics.median(found[1:]) for found in times]


def bfloat16_row(model: str, repeats: int = 3) -> Row:
    """Compare the precision that `auto` chooses with float32."""
    cpu, batch = torch.device("cpu"), BATCHES[model]
    what = f"training step, {model}, {batch} images, precision auto"
    if choose_precision("auto", cpu) == "float32":
        note = "this CPU does not compute in bfloat16: auto is float32, and no slower"
        return Row(what, "float32", harness.at_least(TARGETS[model]), "", None, note=note)
    full, auto = (loss_curve(model, precision) for precision in ("float32", "auto"))
    apart = max(abs(first - second) for first, second in zip(full, auto, strict=True)) / full[0]
    harness.require(full[-1] < full[0], "nothing was learned")
    harness.require(apart < TOLERANCE, f"the loss curves of {model} differ by {apart:.1%}")
    steps = [TrainingStep(cpu, model=model, precision=precision) for precision in ("float32", "auto")]
    reference, seconds = alternating_seconds(*steps, batch=batch, repeats=repeats)
    size = CURVE_SIZES[model]
    return harness.speedup_row(
        what,
        "the same with precision: float32",
        reference_seconds=reference,
        seconds=seconds,
        target=TARGETS[model],
        same_work=f"loss over {CURVE_STEPS} steps ({size} px, {CURVE_BATCH} images) within {apart:.1%} of the first "
        f"loss, {TOLERANCE:.0%} allowed",
        note=f"bfloat16, {steps[1].computation.memory_format}, {torch.get_num_threads()} threads",
    )


def optimizer_row(model: str = "vitb16", target: float = 3.0, repeats: int = 5) -> Row:
    """Compare the optimizer's one kernel for a whole group with the plain loop over tensors."""
    optimizers: list[torch.optim.Optimizer] = []
    models = []
    for fused in (False, True):
        step = TrainingStep(torch.device("cpu"), model=model)
        random = torch.Generator().manual_seed(0)
        for parameter in step.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random)
        for group in step.optimizer.param_groups:
            group["lr"], group["fused"] = 1e-4, fused
        optimizers.append(step.optimizer)
        models.append(step.model)
    times: list[list[float]] = [[], []]
    for _ in range(repeats + 1):
        for optimizer, found in zip(optimizers, times, strict=True):
            start = time.perf_counter()
            optimizer.step()
            found.append(time.perf_counter() - start)
    pairs = zip(*(one.parameters() for one in models), strict=True)
    apart = max(float((plain - fused).detach().abs().max()) for plain, fused in pairs)
    harness.require(apart < 1e-5, f"the weights differ by {apart:.1g}")
    reference, seconds = (statistics.median(found[1:]) for found in times)
    return harness.speedup_row(
        f"optimizer step (AdamW), {model}",
        "the same, tensor by tensor",
        reference_seconds=reference,
        seconds=seconds,
        target=target,
        same_work=f"weights after {repeats + 1} steps of 0.0001 within {apart:.1g}",
        note=f"{torch.get_num_threads()} threads",
    )


def small_rows(batch: int = 64, repeats: int = 3) -> Iterator[Row]:
    """Compare the small models, which are different models: there is no equal work to prove."""
    steps = [TrainingStep(torch.device("cpu"), model=model, neck=neck) for model, neck in SMALL_MODELS.items()]
    first, *others = alternating_seconds(*steps, batch=batch, repeats=repeats)
    for model, seconds in zip(list(SMALL_MODELS)[1:], others, strict=True):
        yield Row(
            f"training step, {model}, {batch} images",
            "vit_small",
            "",
            f"{seconds / first:.2f}x as long",
            None,
            seconds,
            first,
            note=steps[0].computation.precision,
        )


def rows() -> Iterator[Row]:
    """Yield a row for each comparison."""
    for model in TARGETS:
        yield bfloat16_row(model)
    yield optimizer_row()
    yield from small_rows()


if __name__ == "__main__":
    harness.main(rows)
