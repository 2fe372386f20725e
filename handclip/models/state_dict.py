"""Comparing a state dict with the model it is meant for."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from handclip.errors import CheckpointError


def load_checked(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Load weights that are the model's to the last entry, and finite.

    Batch norm's counters of batches may be absent, as they are in old files: nothing depends on their value.

    Raises:
        CheckpointError: says how many entries match, are missing, are not known, or have another shape; or which holds
            NaN or infinity.
    """
    own = model.state_dict()
    complete = {**{key: value for key, value in own.items() if key.endswith("num_batches_tracked")}, **state_dict}
    missing, unknown = sorted(own.keys() - complete.keys()), sorted(complete.keys() - own.keys())
    common = sorted(own.keys() & complete.keys())
    reshaped = [key for key in common if own[key].shape != complete[key].shape]
    findings = [f"{len(common) - len(reshaped)} of {len(own)} entries match"]
    if missing:
        findings.append(f"{len(missing)} missing (such as {', '.join(missing[:3])})")
    if unknown:
        findings.append(f"{len(unknown)} not in this model (such as {', '.join(unknown[:3])})")
    if reshaped:
        given, expected = (tuple(state[reshaped[0]].shape) for state in (complete, own))
        findings.append(f"{len(reshaped)} of another shape ({reshaped[0]}: {given}, the model has {expected})")
    if findings[1:]:
        raise CheckpointError(f"{source}: these weights belong to another model: {'; '.join(findings)}")
    for key, value in complete.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(
                f"{source}: {key} holds NaN or infinite numbers, with which no result would mean anything; "
                "the file is damaged, or its training has failed"
            )
    model.load_state_dict(complete)
