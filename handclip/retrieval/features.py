"""Embedding a list of images: the one way features are made, in validation as in evaluation."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from handclip.datasets.pixel_cache import PixelCache
from handclip.datasets.torch_dataset import ImageDataset, ImageLoader, LabelledImage, to_images
from handclip.datasets.transforms import ImageTransform
from handclip.datasets.workers import plain_worker_errors
from handclip.errors import HandCLIPError
from handclip.models.embedding_model import EmbeddingModel
from handclip.parallel.hardware import full_float32
from handclip.parallel.processes import combine, current, own_share

Features = NDArray[np.float32]


@torch.no_grad()
def extract_features(
    model: EmbeddingModel,
    images: Sequence[LabelledImage],
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    cache: PixelCache | None = None,
    flip: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Features, Features | None]:
    """Embed each image once, in float32 and in eval mode, without a look at its label.

    Several processes embed whole batches in turn, and each gets the features of all.

    Args:
        model: the model; it is left in the mode it was in.
        images: what to embed.
        device: where the model is.
        batch_size: images at a time.
        num_workers: processes that read images.
        cache: where decoded images are kept.
        flip: also embed each image mirrored left to right.
        progress: called with (images done, images in all).

    Returns:
        Features of shape (N, D), and those of the mirrored images or None. They are not normalised.

    Raises:
        DataError: an image cannot be read or is not the one in the manifest.
        HandCLIPError: a feature is not finite.
    """
    transform = ImageTransform(model.encoder.preprocessing)
    dataset = ImageDataset(images, transform, cache)
    starts = range(0, len(images), batch_size)
    own = own_share([list(range(start, min(start + batch_size, len(images)))) for start in starts])
    # Starting a worker takes longer than reading a batch, so a few images are read right here.
    workers = min(num_workers, sum(map(len, own)) // batch_size)
    loader = ImageLoader(dataset, own, device, largest=batch_size, num_workers=workers)
    plain = np.zeros((len(images), model.feature_dim), np.float32)
    mirrored = np.zeros_like(plain) if flip else None
    done = 0
    with torch.autocast(device.type, enabled=False), full_float32(), plain_worker_errors():
        for rows, batch in zip(own, loader, strict=True):
            prepared = to_images(batch, transform, device)
            plain[rows] = model.embed(prepared).float().cpu().numpy()
            if mirrored is not None:
                mirrored[rows] = model.embed(prepared.flip(-1)).float().cpu().numpy()
            done += len(prepared)
            if progress:
                progress(min(done * current().size, len(images)), len(images))
    for features in (plain, mirrored):
        if features is None:
            continue
        combine(features)
        if not (finite := np.isfinite(features).all(axis=1)).all():
            first = images[int(np.flatnonzero(~finite)[0])].path
            raise HandCLIPError(
                f"{np.count_nonzero(~finite)} features are not finite (NaN or infinity), such as of {first}"
            )
    return plain, mirrored
