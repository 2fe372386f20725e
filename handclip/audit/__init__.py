"""`handclip audit`: recompute what can be recomputed of runs, and say what no longer matches."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from handclip.audit.evaluation import audit_evaluation
from handclip.audit.findings import AuditResult, Finding, Outcome, guarded
from handclip.audit.images import ImageChecker, audit_manifest
from handclip.audit.places import Place, find_places
from handclip.audit.study import audit_study
from handclip.audit.training import audit_checkpoint, audit_training
from handclip.errors import HandCLIPError
from handclip.file_names import STUDY
from handclip.locks import is_held

__all__ = ["AuditResult", "Finding", "Outcome", "audit"]


def audit(
    paths: Iterable[Path], *, images: bool = True, report: Callable[[int, int], None] = lambda done, total: None
) -> list[AuditResult]:
    """Recompute hashes, and metrics from stored features, and compare them with what was recorded.

    Nothing is written and nothing is run but the ranking. What nothing was recorded of is not checked: features that
    were replaced together with every number that follows from them agree with each other, for instance.

    Args:
        paths: folders of evaluations, trainings or studies, or folders above; checkpoints; manifests.
        images: read the images of manifests, where they are, and compare their hashes.
        report: called with (images done, images in all) of each manifest.

    Raises:
        HandCLIPError: a path names nothing that can be audited, or something twice, or may not be read itself.
    """
    named: dict[str, Place] = {}
    for path in paths:
        for place in find_places(path):
            real = os.path.realpath(place.path)  # `Path.resolve` breaks at a link to itself
            if real in named:
                raise HandCLIPError(f"{place.path}: is named twice")
            named[real] = place
    checker = ImageChecker(report, images)
    return [AuditResult(place.path, place.kind, tuple(_audit(place, checker))) for place in named.values()]


def _audit(place: Place, images: ImageChecker) -> Iterator[Finding]:
    kind, path = place.kind, place.path
    if place.unread:
        yield Finding(path.name, Outcome.NOT_CHECKED, place.unread)
    elif is_held(path):
        yield Finding(
            path.name, Outcome.NOT_CHECKED, "another process is writing to it now; audit it when it has ended"
        )
    elif kind == "evaluation":
        yield from audit_evaluation(path, images)
    elif kind == "training":
        yield from audit_training(path, images)
    elif kind == "study":
        yield from guarded(STUDY, audit_study, path)
    elif kind == "manifest":
        yield from audit_manifest(path, images)
    else:
        yield from guarded(path.name, audit_checkpoint, path)
