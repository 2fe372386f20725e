"""The optimizer and its learning rates."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from handclip.config.experiment import ExperimentConfig
from handclip.errors import ConfigError
from handclip.loss.criterion import TrainingCriterion
from handclip.models.embedding_model import EmbeddingModel

_WARMUP_START = 0.01
"""Share of the learning rate that the warm-up starts from."""

_COSINE_END = 0.01
"""Share of the learning rate that the cosine schedule ends at."""

_FUSED = ("cpu", "cuda")
"""Kinds of device whose kernel for a whole optimizer step is used."""


def lr_factors(config: ExperimentConfig, steps_per_epoch: int) -> list[float]:
    """Return what the learning rate is multiplied by at each step of a run.

    Linear warm-up from 1 % over `warmup_epochs`; then `cosine`: half a period down to 1 % at the last step;
    `step`: times gamma after each milestone epoch; or `constant`.
    """
    steps = config.epochs * steps_per_epoch
    # A run of one epoch, whose warm-up would be all of it, warms up over half.
    warmup = min(round(config.warmup_epochs * steps_per_epoch), steps // 2)

    def factor(step: int) -> float:
        if step < warmup:
            return _WARMUP_START + (1 - _WARMUP_START) * step / warmup
        if config.schedule == "step":
            return math.prod(config.gamma for milestone in config.milestones if step >= milestone * steps_per_epoch)
        if config.schedule == "constant":
            return 1.0
        last = max(steps - 1, warmup + 1)
        progress = min((step - warmup) / (last - warmup), 1.0)
        return _COSINE_END + (1 - _COSINE_END) * (1 + math.cos(math.pi * progress)) / 2

    return [factor(step) for step in range(steps)]


def build_optimizer(
    config: ExperimentConfig, model: EmbeddingModel, criterion: TrainingCriterion
) -> torch.optim.Optimizer:
    """Put every trainable parameter of model and criterion in an optimizer.

    Returns:
        The optimizer, with the groups `encoder` and `new` (each split by whether it decays: vectors, such as biases and
        norms, do not; `initial_lr` is what `lr_factors` multiply).

    Raises:
        ConfigError: nothing is left to train.
    """
    added = model.encoder.new_parameters()
    added_ids = {id(parameter) for parameter in added}
    encoder = [p for p in model.encoder.parameters() if p.requires_grad and id(p) not in added_ids]
    others = [*added, *model.necks.parameters(), *criterion.parameters()]
    new = [p for p in others if p.requires_grad]
    if not encoder and not new:
        raise ConfigError("freeze: nothing is left to train: the encoder is frozen and no loss has weights of its own")
    groups = [
        *_decay_groups("encoder", encoder, config.lr * config.backbone_lr_scale, config.weight_decay),
        *_decay_groups("new", new, config.lr, config.weight_decay),
    ]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    # One kernel for a whole group: one pass over the memory in place of ten.
    optimizer = kind(groups, fused=True if all(p.device.type in _FUSED for p in (*encoder, *new)) else None)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    optimizer.register_load_state_dict_pre_hook(_keep_kernel)
    _check_complete(model, criterion, optimizer)
    return optimizer


def _keep_kernel(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Go on with this device's kernel: a saved state brings along that of the device where it was saved."""
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    return {**state, "param_groups": [{**saved, "fused": own["fused"]} for saved, own in pairs]}


def _decay_groups(name: str, parameters: list[nn.Parameter], lr: float, decay: float) -> Iterable[dict[str, object]]:
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    for suffix, members, weight_decay in (("", matrices, decay), (" (no decay)", vectors, 0.0)):
        if members:
            yield {"name": name + suffix, "params": members, "lr": lr, "weight_decay": weight_decay}


def _check_complete(model: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for module in (model, criterion):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in held:
                raise AssertionError(f"parameter {name} is trainable but not in the optimizer")
