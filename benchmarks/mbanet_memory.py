"""Seconds and peak memory of a training step of full-size MBA-Net on the CPU, in a process of its own."""

import argparse
import resource
import time

import torch

from handclip.models.mbanet import MBANetEncoder

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--side", type=int, default=324)
parser.add_argument("--relative-position", default="published", choices=["published", "intended"])
options = parser.parse_args()

torch.manual_seed(0)
encoder = MBANetEncoder("mbanet", input_size=(options.side, options.side), relative_position=options.relative_position)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
start = time.perf_counter()
embeddings = encoder.train()(torch.randn(options.batch, 3, options.side, options.side))
torch.stack([embedding.square().mean() for embedding in embeddings.values()]).sum().backward()
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
assert all(parameter.grad is not None for parameter in encoder.parameters())
print(f"batch {options.batch}, {options.side} px, {options.relative_position}: forward and backward {seconds:.1f} s")
print(f"peak memory {peak:.2f} GiB, of which model and libraries {before:.2f} GiB")
