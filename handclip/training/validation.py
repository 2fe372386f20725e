"""Retrieval on the validation images of training identities: what selects the best epoch."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from handclip.datasets.torch_dataset import LabelledImage
from handclip.errors import TrainingError
from handclip.metrics import rank_gallery
from handclip.parallel.processes import on_first
from handclip.retrieval.features import Embedder, Features


def validate(
    embedder: Embedder,
    queries: list[LabelledImage],
    gallery: list[LabelledImage],
    aspects: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Rank one training image of each identity for its validation image, each aspect by itself as in evaluation.

    Pooled, a person's left and right hand would be each other's distractors, which no test asks for.

    Args:
        embedder: makes the features.
        queries: the validation image of each identity.
        gallery: a training image of the same identity each.
        aspects: the aspect of each.
        progress: called with (images embedded, images in all) after each batch.

    Returns:
        `val_rank1`, `val_rank5`, `val_rank10` and `val_map` as fractions, means over the aspects.

    Raises:
        TrainingError: the features cannot be ranked.
    """
    features = embedder.embed([*queries, *gallery], progress=progress)["none"]
    of_queries, of_gallery = features[: len(queries)], features[len(queries) :]
    labels = np.array([image.label for image in queries])
    # One process decides, so that none can take another epoch for the best.
    return on_first(lambda: _rank(of_queries, of_gallery, labels, aspects))


def _rank(
    of_queries: Features, of_gallery: Features, labels: NDArray[np.int64], aspects: Sequence[str]
) -> dict[str, float]:
    results = []
    for aspect in sorted(set(aspects)):
        rows = np.flatnonzero(np.asarray(aspects) == aspect)
        try:
            results.append(rank_gallery(of_queries[rows], of_gallery[rows], labels[rows], labels[rows]))
        except ValueError as error:
            raise TrainingError(f"validation is not possible, the model has collapsed: {error}. Lower lr") from error
    metrics = {f"val_rank{k}": [result.rank(k) for result in results] for k in (1, 5, 10)}
    metrics["val_map"] = [result.map for result in results]
    return {name: float(np.mean(values)) for name, values in metrics.items()}
