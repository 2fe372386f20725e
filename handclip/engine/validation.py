"""Retrieval on the validation images of training identities: what selects the best epoch."""

import torch

from handclip.datasets.torch_dataset import LabelledImage
from handclip.engine.features import extract_features
from handclip.errors import TrainingError
from handclip.metrics import rank_gallery
from handclip.models.embedding_model import EmbeddingModel


def validate(
    model: EmbeddingModel,
    queries: list[LabelledImage],
    gallery: list[LabelledImage],
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int,
) -> dict[str, float]:
    """Rank one training image of each identity for its validation image.

    Returns:
        `val_rank1`, `val_rank5`, `val_rank10` and `val_map` as fractions.

    Raises:
        TrainingError: the features cannot be ranked.
    """
    features, _ = extract_features(
        model, [*queries, *gallery], device=device, batch_size=batch_size, num_workers=num_workers
    )
    count = len(queries)
    labels = [image.label for image in queries], [image.label for image in gallery]
    try:
        result = rank_gallery(features[:count], features[count:], *labels)
    except ValueError as error:
        raise TrainingError(f"validation is not possible, the model has collapsed: {error}. Lower lr") from error
    return {f"val_rank{k}": result.rank(k) for k in (1, 5, 10)} | {"val_map": result.map}
