"""Memory of training ViT-B/16: activations with gradient checkpointing, and the encoder beside a whole CLIP.

Activations are counted exactly, as the bytes that the forward pass keeps for the backward pass beside the weights; this
does not depend on the machine. Resident memory is measured in processes of their own.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import harness
import torch
from harness import Row
from torch import Tensor, nn
from training_step import TrainingStep

MODEL, BATCH = "vitb16", 4

_LOADING = """
import json, sys
import torch
import handclip
import open_clip
from handclip.parallel.hardware import reset_peak_memory
from handclip.models.builder import build_model
from handclip.config.loading import parse_config
import harness

side, path = sys.argv[1:]
reset_peak_memory(torch.device("cpu"))
before = harness._resident_mib("VmRSS")
if side == "whole":
    # Held as a whole: what is not would be freed, some time.
    clip = open_clip.create_model("ViT-B-16", pretrained=path, force_quick_gelu=True)
    model = clip.visual
else:
    values = {"experiment": "memory", "model": "vitb16", "dataset": "11k", "pretrained": path}
    model = build_model(parse_config(values, "benchmark")).encoder.tower
peak, now = (harness._resident_mib(name) - before for name in ("VmHWM", "VmRSS"))
torch.manual_seed(0)
with torch.no_grad():
    feature = model.eval()(torch.randn(1, 3, 224, 224))
print(json.dumps({"peak": peak, "now": now, "feature": feature.flatten().tolist()}))
"""


def kept_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, beside the model's weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    # The tensors themselves are held, so that none's place in memory is given to another meanwhile.
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def gradients(step: TrainingStep, images: Tensor, labels: Tensor) -> Tensor:
    """Return all gradients of a batch's loss in one vector."""
    step.optimizer.zero_grad()
    step.loss(images, labels).backward()
    return torch.cat([p.grad.flatten() for p in step.model.parameters() if p.grad is not None])


def activations_row(precision: str) -> Row:
    """Compare what is kept with and without `gradient_checkpointing`."""
    cpu = torch.device("cpu")
    keys = {"model": MODEL, "precision": precision}
    plain, checkpointed = (TrainingStep(cpu, gradient_checkpointing=on, **keys) for on in (False, True))
    batch = plain.batch(BATCH)
    expected = gradients(plain, *batch)
    apart = float((gradients(checkpointed, *batch) - expected).norm() / expected.norm())
    harness.require(apart < 1e-3, f"gradients differ by {apart:.2g}")
    before, after = (kept_bytes(step.model, partial(step.loss, *batch)) / 2**20 for step in (plain, checkpointed))
    return Row(
        f"activations of {MODEL}, {precision}, gradient_checkpointing: true",
        "gradient_checkpointing: false",
        "at most 1/3",
        f"1/{before / after:.1f}",
        after <= before / 3,
        same_work=f"gradients within {apart:.1g}",
        note=f"kept per image: {after / BATCH:.1f} MiB against {before / BATCH:.1f} MiB, to which the backward pass "
        "adds one block's at a time",
    )


def loading_rows() -> Iterator[Row]:
    """Compare the encoder, loaded from a whole CLIP's weights, with the whole CLIP that open_clip loads from them."""
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.pt"
        torch.manual_seed(0)
        torch.save(open_clip.create_model("ViT-B-16", force_quick_gelu=True).state_dict(), path)
        found = {}
        for side in ("whole", "encoder"):
            command = [sys.executable, "-c", _LOADING, side, str(path)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
            found[side] = json.loads(answer.stdout.splitlines()[-1])
    whole, encoder = found["whole"], found["encoder"]
    first, second = (torch.tensor(side["feature"]) for side in (whole, encoder))
    torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-5)
    yield Row(
        f"resident memory of {MODEL} loaded from a whole CLIP's weights",
        "the whole CLIP, loaded by open_clip",
        "text tower not resident",
        f"{encoder['now']:.0f} MiB against {whole['now']:.0f} MiB",
        encoder["now"] < 0.75 * whole["now"],
        extra_mib=encoder["peak"],
        same_work="the same image feature",
        note=f"peak while loading {encoder['peak']:.0f} MiB against {whole['peak']:.0f} MiB; random weights, float32",
    )


def rows() -> Iterator[Row]:
    """Yield a row for each comparison."""
    for precision in ("float32", "bfloat16"):
        yield activations_row(precision)
    yield from loading_rows()


if __name__ == "__main__":
    harness.main(rows)
