"""`handclip verify`: recompute what can be recomputed of runs, and say what no longer matches."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from handclip.errors import HandCLIPError
from handclip.locks import is_held
from handclip.verify.evaluation import verify_evaluation
from handclip.verify.findings import Finding, Outcome, Verification
from handclip.verify.images import ImageChecker, verify_manifest
from handclip.verify.places import Place, find_places
from handclip.verify.study import verify_study
from handclip.verify.training import verify_checkpoint, verify_training

__all__ = ["Finding", "Outcome", "Verification", "verify"]


def verify(
    paths: Iterable[Path], *, images: bool = True, report: Callable[[int, int], None] = lambda done, total: None
) -> list[Verification]:
    """Recompute hashes, and metrics from stored features, and compare them with what was recorded.

    Nothing is written and nothing is run but the ranking. What nothing was recorded of is not checked: features that
    were replaced together with every number that follows from them agree with each other, for instance.

    Args:
        paths: folders of evaluations, trainings or studies, or folders above; checkpoints; manifests.
        images: read the images of manifests, where they are, and compare their hashes.
        report: called with (images done, images in all) of each manifest.

    Raises:
        HandCLIPError: a path names nothing that can be verified, or something twice, or may not be read itself.
    """
    named: dict[str, Place] = {}
    for path in paths:
        for place in find_places(path):
            real = os.path.realpath(place.path)  # `Path.resolve` breaks at a link to itself
            if real in named:
                raise HandCLIPError(f"{place.path}: is named twice")
            named[real] = place
    checker = ImageChecker(report, images)
    return [Verification(place.path, place.kind, tuple(_verify(place, checker))) for place in named.values()]


def _verify(place: Place, images: ImageChecker) -> Iterator[Finding]:
    kind, path = place.kind, place.path
    if place.unread:
        yield Finding(path.name, Outcome.NOT_CHECKED, place.unread)
    elif is_held(path):
        yield Finding(
            path.name, Outcome.NOT_CHECKED, "another process is writing to it now; verify it when it has ended"
        )
    elif kind == "evaluation":
        yield from verify_evaluation(path, images)
    elif kind == "training":
        yield from verify_training(path, images)
    elif kind == "study":
        yield from verify_study(path)
    elif kind == "manifest":
        yield from verify_manifest(path, images)
    else:
        yield from verify_checkpoint(path)
