"""Whether a manifest keeps to the protocol, and whether its images are still those that it lists."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from handclip.audit.findings import Finding, Outcome, guarded, shortened
from handclip.checksums import sha256_of
from handclip.datasets.check import check_protocol
from handclip.datasets.manifest import Manifest
from handclip.errors import DamagedFileError


@dataclass
class ImageChecker:
    """Hashes images, each once in an audit, however many manifests list it.

    Args:
        report: called with (images done, images in all) of each manifest.
        wanted: whether images are read at all.
    """

    report: Callable[[int, int], None]
    wanted: bool = True
    _known: dict[Path, str] = field(default_factory=dict)

    def check(self, what: str, manifest: Manifest) -> Iterator[Finding]:
        """Yield what is found of a manifest's images."""
        what = f"images of {what}"
        if not self.wanted:
            yield Finding(what, Outcome.NOT_CHECKED, "--no-images was given")
        elif not manifest.root.is_dir():
            yield Finding(what, Outcome.NOT_CHECKED, f"{manifest.root} is not there")
        else:
            yield self._read(what, manifest)

    def _read(self, what: str, manifest: Manifest) -> Finding:
        gone, changed = [], []
        for index, image in enumerate(manifest.images):
            self.report(index, len(manifest.images))
            path = manifest.path_of(index)
            if not path.exists():
                gone.append(image.path)
            elif not self._is_the_one(path, image.bytes, image.sha256):
                changed.append(image.path)
        count = f"of {len(manifest.images):,} in {manifest.root}"
        if gone:
            return Finding(what, Outcome.GONE, f"{len(gone):,} {count} are gone: {shortened(gone)}")
        if changed:
            return Finding(what, Outcome.DIFFERS, f"{len(changed):,} {count} have changed: {shortened(changed)}")
        return Finding(what, Outcome.MATCHES, f"size and SHA-256 {count}")

    def _is_the_one(self, path: Path, size: int, sha256: str) -> bool:
        if path.stat().st_size != size:
            return False
        if path not in self._known:
            try:
                self._known[path] = sha256_of(path)
            except DamagedFileError:
                return False
        return self._known[path] == sha256


def audit_manifest(path: Path, images: ImageChecker) -> Iterator[Finding]:
    """Yield what is found of a manifest."""
    yield from guarded(path.name, _audit_manifest, path, images)


def _audit_manifest(path: Path, images: ImageChecker) -> Iterator[Finding]:
    if not path.exists():
        yield Finding(path.name, Outcome.GONE, "not there")
        return
    manifest = Manifest.load(path)
    yield Finding(path.name, Outcome.MATCHES, f"its own hash, {manifest.sha256[:12]}")
    if breaches := check_protocol(manifest):
        yield Finding("protocol", Outcome.DIFFERS, shortened(breaches))
    else:
        yield Finding("protocol", Outcome.MATCHES, f"{len(manifest.draws)} draws keep to it")
    yield from images.check(path.name, manifest)
