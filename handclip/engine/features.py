"""Embedding a list of images: the one way features are made, in validation as in evaluation."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from handclip.datasets.torch_dataset import ImageDataset, LabelledImage, plain_worker_errors
from handclip.datasets.transforms import ImageTransform
from handclip.engine.hardware import full_float32
from handclip.errors import HandCLIPError
from handclip.models.embedding_model import EmbeddingModel

Features = NDArray[np.float32]


@torch.no_grad()
def extract_features(
    model: EmbeddingModel,
    images: Sequence[LabelledImage],
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    flip: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Features, Features | None]:
    """Embed each image once, in float32 and in eval mode, without a look at its label.

    Args:
        model: the model; it is left in the mode it was in.
        images: what to embed.
        device: where the model is.
        batch_size: images at a time.
        num_workers: processes that read images.
        flip: also embed each image mirrored left to right.
        progress: called with (images done, images in all).

    Returns:
        Features of shape (N, D), and those of the mirrored images or None. They are not normalised.

    Raises:
        DataError: an image cannot be read or is not the one in the manifest.
        HandCLIPError: a feature is not finite.
    """
    dataset = ImageDataset(images, ImageTransform(model.encoder.preprocessing))
    # Starting a worker takes longer than reading a batch, so a few images are read right here.
    workers = min(num_workers, len(images) // batch_size)
    loader = DataLoader(dataset, batch_size, num_workers=workers, pin_memory=device.type == "cuda")
    plain = np.empty((len(images), model.feature_dim), np.float32)
    mirrored = np.empty_like(plain) if flip else None
    was_training = model.training
    model.eval()
    done = 0
    try:
        with torch.autocast(device.type, enabled=False), full_float32(), plain_worker_errors():
            for pixels, _ in loader:
                pixels = pixels.to(device, non_blocking=True)
                rows = slice(done, done + len(pixels))
                plain[rows] = model.embed(pixels).float().cpu().numpy()
                if mirrored is not None:
                    mirrored[rows] = model.embed(pixels.flip(-1)).float().cpu().numpy()
                done += len(pixels)
                if progress:
                    progress(done, len(images))
    finally:
        model.train(was_training)
    for features in (plain, mirrored):
        if features is not None and not (finite := np.isfinite(features).all(axis=1)).all():
            first = images[int(np.flatnonzero(~finite)[0])].path
            raise HandCLIPError(
                f"{np.count_nonzero(~finite)} features are not finite (NaN or infinity), such as of {first}"
            )
    return plain, mirrored
