"""Seconds and peak memory of a training step of full-size MBA-Net on the CPU, in a process of its own."""

import argparse
import resource
import time

import torch

from handclip.config.loading import parse_config
from handclip.loss.loss_factory import build_criterion
from handclip.models.builder import build_model
from handclip.training.optimization import build_optimizer

IDENTITIES = 72
"""Of dorsal right in 11k Hands."""

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--side", type=int, default=324)
parser.add_argument("--relative-position", default="published", choices=["published", "intended"])
options = parser.parse_args()

torch.manual_seed(0)
values = {
    "experiment": "memory", "model": "mbanet", "pretrained": "none", "dataset": "11k", "input_size": options.side,
    "relative_position": options.relative_position, "neck": "hidden", "optimizer": "adam",
}  # fmt: skip
config = parse_config(values, "benchmark")
model = build_model(config).train()
criterion = build_criterion(config.losses, IDENTITIES, model.encoder.embedding_dims)
optimizer = build_optimizer(config, model, criterion)
images, labels = torch.randn(options.batch, 3, options.side, options.side), torch.arange(options.batch)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
start = time.perf_counter()
criterion(embeddings=model(images), labels=labels).total.backward()
optimizer.step()
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
assert all(parameter.grad is not None for parameter in [*model.parameters(), *criterion.parameters()])
print(f"batch {options.batch}, {options.side} px, {options.relative_position}: a step of Adam takes {seconds:.1f} s")
print(f"peak memory {peak:.2f} GiB, of which model and libraries {before:.2f} GiB")
