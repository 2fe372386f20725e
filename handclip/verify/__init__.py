"""`handclip verify`: recompute what can be recomputed of runs, and say what no longer matches."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from handclip.errors import HandCLIPError
from handclip.locks import is_held
from handclip.verify.evaluation import verify_evaluation
from handclip.verify.findings import Finding, Kind, Outcome, Verification
from handclip.verify.images import ImageChecker, verify_manifest
from handclip.verify.places import find_places
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
        HandCLIPError: a path names nothing that can be verified, or something twice.
    """
    named: dict[Path, tuple[Kind, Path]] = {}
    for path in paths:
        for kind, place in find_places(path):
            if place.resolve() in named:
                raise HandCLIPError(f"{place}: is named twice")
            named[place.resolve()] = (kind, place)
    checker = ImageChecker(report, images)
    return [Verification(place, kind, tuple(_verify(kind, place, checker))) for kind, place in named.values()]


def _verify(kind: Kind, place: Path, images: ImageChecker) -> Iterator[Finding]:
    if is_held(place):
        yield Finding(
            place.name, Outcome.NOT_CHECKED, "another process is writing to it now; verify it when it has ended"
        )
    elif kind == "evaluation":
        yield from verify_evaluation(place, images)
    elif kind == "training":
        yield from verify_training(place, images)
    elif kind == "study":
        yield from verify_study(place)
    elif kind == "manifest":
        yield from verify_manifest(place, images)
    else:
        yield from verify_checkpoint(place)
