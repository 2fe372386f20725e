"""Comparing a state dict with the model it is meant for."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from handclip.errors import CheckpointError


def load_checked(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Load weights that are the model's to the last entry.

    Batch norm's counters of batches may be absent, as they are in old files: nothing depends on their value.

    Raises:
        CheckpointError: as `check_state_dict`.
    """
    own = model.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    complete = {**counters, **state_dict}
    check_state_dict(model, complete, source)
    model.load_state_dict(complete)


def check_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Compare names and shapes before loading, and look for numbers that are none.

    Raises:
        CheckpointError: says how many entries match, are missing, are not known, or have another shape; or which holds
            NaN or infinity.
    """
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state_dict.items()}
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    common = expected.keys() & given.keys()
    reshaped = sorted(key for key in common if expected[key] != given[key])
    if not (missing or unknown or reshaped):
        for key, value in state_dict.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise CheckpointError(
                    f"{source}: {key} holds NaN or infinite numbers, with which no result would mean anything; "
                    "the file is damaged, or its training has failed"
                )
        return
    findings = [f"{len(common) - len(reshaped)} of {len(expected)} entries match"]
    if missing:
        findings.append(f"{len(missing)} missing (such as {', '.join(missing[:3])})")
    if unknown:
        findings.append(f"{len(unknown)} not in this model (such as {', '.join(unknown[:3])})")
    if reshaped:
        key = reshaped[0]
        findings.append(f"{len(reshaped)} of another shape ({key}: {given[key]}, the model has {expected[key]})")
    raise CheckpointError(f"{source}: these weights belong to another model: {'; '.join(findings)}")
