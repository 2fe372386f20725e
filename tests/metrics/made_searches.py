"""Made-up scores of searches, as verification and identification take them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Scored:
    scores: NDArray[Any]
    query_people: NDArray[Any]
    gallery_people: NDArray[Any]


def made_search(people: int, seed: int = 0, *, images: int = 1, strangers: int = 0, distance: float = 3.0) -> Scored:
    """Some queries of each person, and of strangers, against one gallery image of each; `distance` parts them."""
    rng = np.random.default_rng(seed)
    queries = np.repeat(np.arange(people + strangers), images) * 10 + 7
    gallery = rng.permutation(people) * 10 + 7
    scores = rng.normal(size=(len(queries), people)) + distance * (queries[:, None] == gallery)
    return Scored(scores.astype(np.float32), queries, gallery)
