"""The images of a data set, each looked at once before any training: hashed, and decoded to find the damaged ones."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from handclip.cores import available_cores
from handclip.datasets.images import decode_image, read_bytes
from handclip.datasets.preparation import Preparation
from handclip.datasets.safe_paths import DatasetFiles
from handclip.errors import DataError
from handclip.plurals import first_lines


@dataclass(frozen=True)
class ImageFacts:
    """What identifies an image file: the SHA-256 of its bytes (hexadecimal) and its size."""

    sha256: str
    bytes: int


def inspect_image(path: Path) -> ImageFacts:
    """Hash a file and decode it once, so that a damaged image is found before training.

    Raises:
        DataError: as for `read_image`.
    """
    data = read_bytes(path)
    decode_image(data, str(path))
    return ImageFacts(hashlib.sha256(data).hexdigest(), len(data))


def inspect_images(preparation: Preparation, paths: Sequence[str]) -> dict[str, ImageFacts]:
    """Inspect many images of a data set at once; unreadable ones are left out of the answer if they may be missing.

    Raises:
        DataError: a path or a link leads out of the root, which is found before any image is read; or there are
            unreadable images: names how many, and the first ten with what is wrong.
    """
    files = DatasetFiles(preparation.root)
    for path in paths:
        with suppress(OSError):
            files.status(path)

    def inspect(path: str) -> ImageFacts | DataError:
        try:
            return inspect_image(files.path(path))
        except DataError as error:
            return error

    facts: dict[str, ImageFacts] = {}
    failures: list[str] = []
    # Threads, not processes: hashing and Pillow's decoders release the interpreter lock.
    with ThreadPoolExecutor(min(8, available_cores())) as pool:
        for done, (path, result) in enumerate(zip(paths, pool.map(inspect, paths), strict=True), start=1):
            if isinstance(result, DataError):
                failures.append(str(result))
            else:
                facts[path] = result
            if preparation.progress is not None:
                preparation.progress(done, len(paths))
    if failures and not preparation.allow_missing:
        first = "\n  ".join(first_lines(failures))
        raise DataError(
            f"{len(failures):,} of {len(paths):,} images cannot be read:\n  {first}\n"
            "Mend or remove them, or leave them out with --allow-missing (in a config, allow_missing: true)"
        )
    return facts
