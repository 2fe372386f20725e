"""What an evaluation keeps beside its metrics, so that reports can be made from its files alone, without photographs.

`features.safetensors` holds the feature of every image of the draws and of the validation pairs,
`manifest_<aspect>.json` which image is whose, `attributes.csv` what the data set says about them, and
`explanations.safetensors` a few photographs with maps of where the model looks.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from handclip.checksums import require_intact
from handclip.csv_files import csv_rows, csv_table
from handclip.datasets.manifest import ManifestImage
from handclip.errors import DamagedFileError, HandCLIPError
from handclip.file_names import ATTRIBUTES, EXPLANATIONS, FEATURES
from handclip.files import replacing, write_text
from handclip.retrieval.features import FeatureTable

AGAIN = "Evaluate the run again: handclip evaluate CONFIG --overwrite"
"""What to do about a file of an evaluation that is damaged."""

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

    @classmethod
    def of_tables(cls, *tables: FeatureTable) -> "KeptFeatures":
        """Join what was embedded together."""
        by_flip = {flip: np.concatenate([table.by_flip[flip] for table in tables]) for flip in tables[0].by_flip}
        return cls([sha256 for table in tables for sha256 in table.sha256], by_flip)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {sha256: row for row, sha256 in enumerate(self.sha256)}

    def of(self, images: Iterable[ManifestImage], flip: str) -> NDArray[np.float64]:
        """Return the (N, D) features of images under a flip setting, scaled to length 1 in float64.

        Raises:
            HandCLIPError: they are not all there.
        """
        if flip not in self.by_flip:
            kept, wanted = " and ".join(self.by_flip) or "(nothing)", ", ".join([*self.by_flip, flip])
            raise HandCLIPError(
                f"{FEATURES} has features of flip {kept}, not of flip {flip}. To have them too, evaluate the run "
                f"again: handclip evaluate CONFIG --overwrite --set 'flip_settings=[{wanted}]'"
            )
        try:
            rows = [self._rows[image.sha256] for image in images]
        except KeyError as error:
            raise HandCLIPError(
                f"{FEATURES} lacks {error.args[0]}, which the manifest beside it has: the two do not belong together. "
                "Evaluate the run again with --overwrite"
            ) from None
        vectors = self.by_flip[flip][rows].astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        scaled: NDArray[np.float64] = vectors / np.where(lengths > 0, lengths, 1)
        return scaled


@dataclass(frozen=True, eq=False)
class Explanation:
    """A photograph, kept with maps of where a model looks in it.

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


def write_features(folder: Path, features: KeptFeatures) -> None:
    """Write `features.safetensors`; the same features give the same bytes."""
    hashes = np.array([list(bytes.fromhex(sha256)) for sha256 in features.sha256], np.uint8)
    by_flip = {f"flip_{flip}": vectors for flip, vectors in features.by_flip.items()}
    _write_arrays(folder / FEATURES, {"sha256": hashes, **by_flip})


def read_features(folder: Path, *, listed: bool = True) -> KeptFeatures:
    """Read `features.safetensors`.

    Args:
        folder: of the evaluation.
        listed: it must be what `SHA256SUMS` beside it says; who checks that list anyway can do without.

    Raises:
        HandCLIPError: it is missing.
        DamagedFileError: it is damaged.
    """
    arrays, _ = _read_arrays(folder / FEATURES, listed=listed)
    hashes = arrays.pop("sha256", np.empty((0, 0)))
    if any(array.ndim != 2 or len(array) != len(hashes) for array in (hashes, *arrays.values())):
        raise _damaged(folder / FEATURES, "it does not hold one row of features for each image")
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise _damaged(folder / FEATURES, f"{name} is not all finite float32 numbers")
    by_flip = {name.removeprefix("flip_"): array for name, array in arrays.items()}
    return KeptFeatures([row.tobytes().hex() for row in hashes], by_flip)


def write_attributes(folder: Path, attributes: Mapping[str, Mapping[str, str]]) -> None:
    """Write `attributes.csv`: a line for each image, by path."""
    columns = dict.fromkeys(key for values in attributes.values() for key in values)
    rows = [{"image": image, **values} for image, values in sorted(attributes.items())]
    write_text(folder / ATTRIBUTES, csv_table(rows, ["image", *columns]))


def read_attributes(folder: Path) -> dict[str, dict[str, str]]:
    """Read `attributes.csv`, by the image's path.

    Raises:
        HandCLIPError: it is missing.
        DamagedFileError: it is damaged.
    """
    require_intact(folder, [ATTRIBUTES], advice=AGAIN)
    path = folder / ATTRIBUTES
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv_rows(file)
        if header[:1] != ["image"]:
            raise ValueError("its first column is not image")
        if any(len(line) != len(header) for line in lines):
            raise ValueError("a line has too few values, or too many")
        return {image: dict(zip(header[1:], values, strict=True)) for image, *values in lines}
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, csv.Error) as error:
        raise _damaged(path, str(error)) from error


def write_explanations(folder: Path, explanations: Sequence[Explanation]) -> None:
    """Write `explanations.safetensors`."""
    arrays: dict[str, NDArray[Any]] = {}
    for number, one in enumerate(explanations):
        arrays[f"{number}/photograph"] = one.photograph
        arrays |= {f"{number}/map/{method}": values for method, values in one.maps.items()}
    _write_arrays(folder / EXPLANATIONS, arrays, [[one.image, one.aspect] for one in explanations])


def read_explanations(folder: Path) -> list[Explanation]:
    """Read `explanations.safetensors`.

    Raises:
        HandCLIPError: it is missing.
        DamagedFileError: it is damaged.
    """
    arrays, names = _read_arrays(folder / EXPLANATIONS)
    explanations = []
    try:
        for number, (image, aspect) in enumerate(names):
            prefix = f"{number}/map/"
            maps = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            photograph = arrays[f"{number}/photograph"]
            if photograph.dtype != np.uint8 or photograph.ndim != 3 or photograph.shape[2] != 3:
                raise ValueError(f"photograph {number} is no picture")
            if any(one.dtype != np.float32 or one.ndim != 2 or not np.isfinite(one).all() for one in maps.values()):
                raise ValueError(f"a map of photograph {number} is no matrix of finite numbers")
            explanations.append(Explanation(image, aspect, photograph, maps))
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(folder / EXPLANATIONS, str(error)) from error
    return explanations


_NAMES = "names"
"""The one entry of a file's metadata: of several, safetensors would write now one first, now another."""


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], names: Sequence[Any] = ()) -> None:
    # Of an array that is not contiguous it would write other numbers, and by itself it hides that a disk is full.
    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {_NAMES: json.dumps(names)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _read_arrays(path: Path, *, listed: bool = True) -> tuple[dict[str, NDArray[Any]], Any]:
    """Return arrays, and the names beside them; memory is taken only for what is there."""
    if listed:
        require_intact(path.parent, [path.name], advice=AGAIN)
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()[_NAMES])  # noqa: SIM118
    except FileNotFoundError:
        raise _missing(path) from None
    except Exception as error:  # there is hardly an error that a reader of spoilt bytes cannot raise
        raise _damaged(path, f"{error}" or type(error).__name__) from error


def _damaged(path: Path, fault: str) -> DamagedFileError:
    return DamagedFileError(f"{path}: is damaged ({fault}). {AGAIN}")


def _missing(path: Path) -> HandCLIPError:
    return HandCLIPError(f"{path}: no such file. {AGAIN}")
