"""Where a model looks in a few photographs, kept with an evaluation or asked for by name."""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from handclip.datasets.images import read_image
from handclip.datasets.manifest import Manifest
from handclip.datasets.pixels import seen_part
from handclip.datasets.transforms import ImageTransform
from handclip.errors import HandCLIPError
from handclip.models.attention_maps import attention_maps
from handclip.models.builder import model_from_checkpoint
from handclip.models.checkpoint import Checkpoint
from handclip.models.embedding_model import EmbeddingModel
from handclip.parallel.hardware import choose_device, full_float32
from handclip.runs.artifacts import Explanation

logger = logging.getLogger(__name__)

LONGER_SIDE = 320
"""Photographs are kept no larger than this, in pixels: enough to see a hand, small enough for a page."""

_AT_ONCE = 8


def explain_hands(
    model: EmbeddingModel, device: torch.device, manifests: Mapping[str, Manifest], count: int
) -> list[Explanation]:
    """Map where a model looks in the photographs of `hands_to_explain`; none where no method fits the model."""
    photographs = []
    for aspect, index in hands_to_explain(manifests, count):
        image = manifests[aspect].images[index]
        photographs.append((image.path, aspect, read_image(manifests[aspect].path_of(index), image.sha256)))
    try:
        return explain_photographs(model, device, photographs)
    except HandCLIPError as error:
        logger.warning(f"Where the model looks is not kept: {error}")
        return []


def explain_photographs(
    model: EmbeddingModel, device: torch.device, photographs: Iterable[tuple[str, str, Image.Image]]
) -> list[Explanation]:
    """Map where a model looks in photographs.

    Args:
        model: the model; it is left as it was.
        device: where the model is.
        photographs: path, aspect of the hand, and the photograph, of each.

    Returns:
        For each photograph its maps, and what the model sees of the photograph, at most `LONGER_SIDE` pixels high and
        wide.

    Raises:
        HandCLIPError: no method fits the model.
    """
    transform = ImageTransform(model.encoder.preprocessing)
    explanations, pending = [], iter(photographs)
    while batch := list(itertools.islice(pending, _AT_ONCE)):
        pixels = torch.stack([transform(photograph) for _, _, photograph in batch]).to(device)
        with full_float32():
            found = {name: maps.float().cpu().numpy() for name, maps in attention_maps(model, pixels).items()}
        explanations += [
            Explanation(path, aspect, _small(seen), {name: maps[number] for name, maps in found.items()})
            for number, (path, aspect, photograph) in enumerate(batch)
            for seen in [seen_part(photograph, transform.squash)]
        ]
    return explanations


def explain_checkpoint(checkpoint: Path, images: Sequence[Path]) -> list[Explanation]:
    """Map where a trained model looks in images from anywhere.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        DataError: an image cannot be read.
        HandCLIPError: no method fits the model.
    """
    device = choose_device("auto")
    model = model_from_checkpoint(Checkpoint.load(checkpoint), str(checkpoint)).to(device)
    # Photographs from a camera fill the memory if all are read at once.
    return explain_photographs(model, device, ((str(path), "", read_image(path)) for path in images))


def hands_to_explain(manifests: Mapping[str, Manifest], count: int = 4) -> list[tuple[str, int]]:
    """Choose test photographs that stand for a data set, by the manifests alone: every model is shown the same.

    Aspects take turns. The people are spread evenly over those who have a query in the first draw, in the order of
    their identities, and are different ones as far as there are enough; each is shown with the first of these queries.

    Returns:
        Aspect, and index into the images of its manifest, of at most `count` photographs.
    """
    queries = {aspect: _first_queries(manifest) for aspect, manifest in sorted(manifests.items())}
    chosen: list[tuple[str, int]] = []
    shown: set[int] = set()
    for number, aspect in zip(range(count), itertools.cycle(queries), strict=False):
        people = sorted(queries[aspect])
        place = round(number * (len(people) - 1) / max(count - 1, 1))
        in_turn = [
            person for person in people[place:] + people[:place] if (aspect, queries[aspect][person]) not in chosen
        ]
        if in_turn:
            person = min(in_turn, key=lambda person: person in shown)
            shown.add(person)
            chosen.append((aspect, queries[aspect][person]))
    return chosen


def _first_queries(manifest: Manifest) -> dict[int, int]:
    """Return the first query of each person in the first draw."""
    queries: dict[int, int] = {}
    for index in manifest.draws[0].query:
        queries.setdefault(manifest.images[index].identity, index)
    return queries


def _small(photograph: Image.Image) -> NDArray[np.uint8]:
    small = photograph.copy()
    small.thumbnail((LONGER_SIDE, LONGER_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(small)
