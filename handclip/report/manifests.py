"""Runs that look alike and are not: they were evaluated on different manifests of the same data."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from handclip.datasets.manifest import Manifest
from handclip.errors import HandCLIPError
from handclip.report.runs import EvaluatedRun
from handclip.runs.artifacts import manifest_file
from handclip.runs.data import combined_sha256


@dataclass(frozen=True, eq=False)
class DifferentManifests:
    """Runs on one data set and aspect, by the SHA-256 of the manifest that each was evaluated on; at least two."""

    dataset: str
    aspect: str
    runs: dict[str, list[EvaluatedRun]]

    def __str__(self) -> str:
        return f"{self.dataset} {self.aspect}"


def require_one_manifest(runs: Sequence[EvaluatedRun]) -> None:
    """Check that runs on the same data set and aspect were evaluated on the same manifest of it.

    Raises:
        HandCLIPError: names the data set and aspect, and which run has which manifest, of which seed.
    """
    if lines := [line for different in differing_manifests(runs) for line in _lines(different)]:
        raise HandCLIPError(
            "these runs were evaluated on different manifests, so that their numbers are not comparable:\n"
            + "\n".join(lines)
            + "\nName only runs of one manifest, or set them in blocks of their own, not compared with each other, by "
            "--different-manifests"
        )


def differing_manifests(runs: Sequence[EvaluatedRun]) -> Iterator[DifferentManifests]:
    """Yield each data set and aspect of which runs have different manifests.

    The single aspects of runs on several count as well, unless the same runs already differ in another way of these.
    Manifests of folders, which can be any photographs, are of the same data where they share photographs, or where
    that cannot be known, as no run of one has kept it.
    """
    places: dict[tuple[str, str], dict[str, list[EvaluatedRun]]] = {}
    for run in runs:
        for aspect, part in run.metrics.by_aspect.items():
            places.setdefault((run.metrics.dataset, aspect), {}).setdefault(part.manifest_sha256, []).append(run)
    told = set()
    for (dataset, aspect), by_manifest in places.items():
        sides = frozenset(frozenset(map(id, of_one)) for of_one in by_manifest.values())
        if len(by_manifest) > 1 and sides not in told:
            found = DifferentManifests(dataset, aspect, by_manifest)
            if dataset != "folder" or _share_photographs(found):
                told.add(sides)
                yield found


def _lines(different: DifferentManifests) -> Iterator[str]:
    yield f"  {different}"
    for sha256, runs in different.runs.items():
        seeds = {manifest.seed for manifest in _kept(runs, different.aspect, sha256)}
        seed = "splits made elsewhere" if seeds == {None} else f"seed {' and '.join(map(str, seeds))}"
        folders = ", ".join(str(run.folder) for run in runs)
        yield f"    {f'{seed}, ' if seeds else ''}manifest {sha256[:8]}: {folders}"


def _share_photographs(different: DifferentManifests) -> bool:
    """Whether two sides have photographs in common; also where that cannot be known, as who asks can say otherwise."""
    sides = [_kept(runs, different.aspect, sha256) for sha256, runs in different.runs.items()]
    photographs = [{image.sha256 for manifest in side for image in manifest.images} for side in sides]
    return not all(sides) or sum(map(len, photographs)) > len(set().union(*photographs))


def _kept(runs: Sequence[EvaluatedRun], aspect: str, sha256: str) -> list[Manifest]:
    """Return what has this hash, of an aspect or of all that are averaged, from the first run that has it undamaged."""
    for run in runs:
        aspects = run.aspects() if aspect == run.metrics.aspect else (aspect,)
        with suppress(HandCLIPError):
            manifests = {one: Manifest.load(manifest_file(run.folder, one)) for one in aspects}
            if combined_sha256(manifests) == sha256:
                return list(manifests.values())
    return []
