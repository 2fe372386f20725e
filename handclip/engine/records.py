"""What an evaluation keeps beside its metrics, so that reports can be made from its files alone, without photographs.

`features.npz` holds the feature of every image of the draws and of the validation pairs, `manifest_<aspect>.json`
which image is whose, `attributes.csv` what the data set says about them, and `explanations.npz` a few photographs with
maps of where the model looks.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from handclip.datasets.manifest import Manifest, ManifestImage
from handclip.errors import HandCLIPError
from handclip.files import replacing, write_text

FEATURES = "features.npz"
ATTRIBUTES = "attributes.csv"
EXPLANATIONS = "explanations.npz"

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class KeptFeatures:
    """Features of images, found by the hash of their file.

    Args:
        sha256: of N images.
        by_flip: (N, D) float32 features for each flip setting, not normalised.
    """

    sha256: Sequence[str]
    by_flip: Mapping[str, Floats]
    _rows: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", {sha256: row for row, sha256 in enumerate(self.sha256)})

    def of(self, images: Iterable[ManifestImage], flip: str) -> NDArray[np.float64]:
        """Return the (N, D) features of images under a flip setting, scaled to length 1 in float64.

        Raises:
            HandCLIPError: they are not all there.
        """
        try:
            rows = [self._rows[image.sha256] for image in images]
            vectors = self.by_flip[flip][rows].astype(np.float64)
        except KeyError as error:
            raise HandCLIPError(
                f"{FEATURES} lacks {error.args[0]}, which the manifest beside it has: the two do not belong together. "
                "Evaluate the run again with --overwrite"
            ) from None
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        scaled: NDArray[np.float64] = vectors / np.where(lengths > 0, lengths, 1)
        return scaled


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where a model looks in one photograph.

    Args:
        image: path relative to the data set's root.
        aspect: aspect of the hand.
        photograph: (H, W, 3) 8-bit RGB, upright, in its own aspect ratio.
        maps: by the method's name, an (h, w) float32 map of the whole photograph, at the model's own resolution, from 0
            up to a largest value of 1; all 0 where the method finds nothing.
    """

    image: str
    aspect: str
    photograph: NDArray[np.uint8]
    maps: Mapping[str, Floats]


def manifest_file(folder: Path, aspect: str) -> Path:
    """Return where an evaluation keeps the manifest of an aspect."""
    return folder / f"manifest_{aspect}.json"


def validation_pairs(manifest: Manifest) -> tuple[list[int], list[int]]:
    """Return the validation images of training people, and for each a training image of the same person.

    The training image is drawn at random, the same way every time. People without a training image are left out.
    """
    random = np.random.default_rng(0)
    by_person: dict[int, list[int]] = {}
    for index in manifest.train:
        by_person.setdefault(manifest.images[index].identity, []).append(index)
    queries = [index for index in manifest.val if manifest.images[index].identity in by_person]
    return queries, [int(random.choice(by_person[manifest.images[index].identity])) for index in queries]


def write_features(folder: Path, features: KeptFeatures) -> None:
    """Write `features.npz`; the same features give the same bytes."""
    arrays: dict[str, Any] = {f"flip_{flip}": vectors for flip, vectors in features.by_flip.items()}
    _write_npz(folder / FEATURES, {"sha256": np.array(features.sha256, dtype="S64"), **arrays})


def read_features(folder: Path) -> KeptFeatures:
    """Read `features.npz`.

    Raises:
        HandCLIPError: it is missing or damaged.
    """
    path = folder / FEATURES
    arrays = _read_npz(path)
    by_flip = {name.removeprefix("flip_"): array for name, array in arrays.items() if name.startswith("flip_")}
    images = [name.decode("ascii") for name in arrays["sha256"].tolist()] if "sha256" in arrays else []
    for array in by_flip.values():
        if array.ndim != 2 or len(array) != len(images) or not np.isfinite(array).all():
            raise HandCLIPError(f"{path}: is damaged; evaluate the run again with --overwrite")
    return KeptFeatures(images, by_flip)


def write_attributes(folder: Path, attributes: Mapping[str, Mapping[str, str]]) -> None:
    """Write `attributes.csv`: a line for each image, by path."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for values in attributes.values() for key in values))
    writer = csv.DictWriter(text, ["image", *columns])
    writer.writeheader()
    for image, values in sorted(attributes.items()):
        writer.writerow({"image": image, **values})
    write_text(folder / ATTRIBUTES, text.getvalue())


def read_attributes(folder: Path) -> dict[str, dict[str, str]]:
    """Read `attributes.csv`, by the image's path.

    Raises:
        HandCLIPError: it is missing or damaged.
    """
    path = folder / ATTRIBUTES
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if any(None in row.values() for row in rows):
            raise ValueError("its last line is cut off")
        return {row.pop("image"): row for row in rows}
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise HandCLIPError(f"{path}: is damaged ({error}); evaluate the run again with --overwrite") from error


def write_explanations(folder: Path, explanations: Sequence[Explanation]) -> None:
    """Write `explanations.npz`."""
    arrays: dict[str, Any] = {}
    for number, one in enumerate(explanations):
        arrays[f"{number}/image"] = np.array([one.image, one.aspect])
        arrays[f"{number}/photograph"] = one.photograph
        arrays.update({f"{number}/map/{method}": values for method, values in one.maps.items()})
    _write_npz(folder / EXPLANATIONS, arrays)


def read_explanations(folder: Path) -> list[Explanation]:
    """Read `explanations.npz`.

    Raises:
        HandCLIPError: it is missing or damaged.
    """
    arrays = _read_npz(folder / EXPLANATIONS)
    explanations = []
    try:
        for number in range(len({name.split("/", 1)[0] for name in arrays})):
            image, aspect = arrays[f"{number}/image"].tolist()
            prefix = f"{number}/map/"
            maps = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            explanations.append(Explanation(image, aspect, arrays[f"{number}/photograph"], maps))
    except (KeyError, ValueError, TypeError) as error:
        path = folder / EXPLANATIONS
        raise HandCLIPError(f"{path}: is damaged; evaluate the run again with --overwrite") from error
    return explanations


def _write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    with replacing(path) as temporary, ZipFile(temporary, "w") as file:
        for name, array in arrays.items():
            # What np.savez writes, but for the time of day: the same arrays give the same bytes.
            with file.open(ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        raise HandCLIPError(f"{path}: is damaged ({error}); evaluate the run again with --overwrite") from error


def _missing(path: Path) -> HandCLIPError:
    return HandCLIPError(
        f"{path}: no such file; this evaluation is by an older version of HandCLIP. Evaluate the run again"
    )
