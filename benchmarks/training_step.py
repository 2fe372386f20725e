"""Time of a training step of the small models, as ratios to the small ViT's in the same run."""

import statistics
import time

import torch

from handclip.config.loading import parse_config
from handclip.engine.criterion import TrainingCriterion
from handclip.engine.hardware import choose_precision
from handclip.engine.optimization import build_optimizers
from handclip.models.builder import build_model

MODELS = {"vit_small": "bnneck", "rn_small": "bnneck", "resnet_small": "bnneck", "mbanet_small": "hidden"}
BATCH, IDENTITIES, STEPS = 64, 250, 5


def seconds_per_step(name: str, neck: str, dtype: torch.dtype) -> float:
    """Median over a few steps on random images, forward, backward and update."""
    values = {"experiment": "benchmark", "model": name, "dataset": "11k", "pretrained": "none", "neck": neck}
    config = parse_config(values, "benchmark")
    torch.manual_seed(0)
    model = build_model(config)
    criterion = TrainingCriterion(config.losses, IDENTITIES, model.encoder.embedding_dims)
    optimizer, _ = build_optimizers(config, model, criterion)
    size = model.encoder.preprocessing
    images = torch.randn(BATCH, 3, size.height, size.width)
    labels = torch.randint(IDENTITIES, (BATCH,))
    times = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = criterion(embeddings=model(images), labels=labels).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


precision = choose_precision("auto", torch.device("cpu"))
print(f"A step of {BATCH} images, {precision}, {torch.get_num_threads()} threads")
reference = None
for name, neck in MODELS.items():
    seconds = seconds_per_step(name, neck, getattr(torch, precision))
    reference = reference or seconds
    print(f"{name:<14}{1000 * seconds:7.0f} ms{seconds / reference:8.2f} x {next(iter(MODELS))}")
