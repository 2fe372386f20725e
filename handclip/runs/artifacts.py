"""What an evaluation keeps beside its metrics, so that reports can be made from its files alone, without photographs.

`features.npz` holds the feature of every image of the draws and of the validation pairs, `manifest_<aspect>.json`
which image is whose, `attributes.csv` what the data set says about them, and `explanations.npz` a few photographs with
maps of where the model looks.
"""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from handclip.checksums import require_intact
from handclip.csv_files import csv_rows, csv_table
from handclip.datasets.manifest import ManifestImage
from handclip.errors import DamagedFileError, HandCLIPError
from handclip.file_names import ATTRIBUTES, EXPLANATIONS, FEATURES
from handclip.files import replacing, write_text

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
    _rows: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", {sha256: row for row, sha256 in enumerate(self.sha256)})

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


def write_features(folder: Path, features: KeptFeatures) -> None:
    """Write `features.npz`; the same features give the same bytes."""
    arrays: dict[str, Any] = {f"flip_{flip}": vectors for flip, vectors in features.by_flip.items()}
    _write_npz(folder / FEATURES, {"sha256": np.array(features.sha256, dtype="S64"), **arrays})


def read_features(folder: Path, *, listed: bool = True) -> KeptFeatures:
    """Read `features.npz`.

    Args:
        folder: of the evaluation.
        listed: it must be what `SHA256SUMS` beside it says; who checks that list anyway can do without.

    Raises:
        HandCLIPError: it is missing.
        DamagedFileError: it is damaged.
    """
    if listed:
        require_intact(folder, [FEATURES], advice=AGAIN)
    arrays = _read_npz(folder / FEATURES)
    by_flip = {name.removeprefix("flip_"): array for name, array in arrays.items() if name.startswith("flip_")}
    names = arrays.get("sha256", np.array([], dtype="S64"))
    shape = (len(names),)
    if names.dtype != "S64" or any(array.ndim != 2 or array.shape[:1] != shape for array in by_flip.values()):
        raise _damaged(folder / FEATURES, "it does not hold one row of features for each image")
    for flip, array in by_flip.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise _damaged(folder / FEATURES, f"features of flip {flip} are not all finite float32 numbers")
    return KeptFeatures([name.decode("ascii", "replace") for name in names.tolist()], by_flip)


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
        HandCLIPError: it is missing.
        DamagedFileError: it is damaged.
    """
    require_intact(folder, [EXPLANATIONS], advice=AGAIN)
    arrays = _read_npz(folder / EXPLANATIONS)
    explanations = []
    try:
        for number in range(len({name.split("/", 1)[0] for name in arrays})):
            image, aspect = arrays[f"{number}/image"].tolist()
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


def _write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    with replacing(path) as temporary, ZipFile(temporary, "w") as file:
        for name, array in arrays.items():
            # What np.savez writes, but for the time of day: the same arrays give the same bytes.
            with file.open(ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read arrays, of which none may claim to be larger than the file is: memory is taken only for what is there."""
    try:
        with ZipFile(path) as file:
            entries = file.infolist()
            if any(entry.compress_type != ZIP_STORED for entry in entries):
                raise ValueError("it is compressed, which no file of HandCLIP's is")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError("its entries claim to be larger than the file is")
            return {entry.filename.removesuffix(".npy"): _read_array(file, entry) for entry in entries}
    except FileNotFoundError:
        raise _missing(path) from None
    except Exception as error:  # there is hardly an error that a reader of spoilt bytes cannot raise
        raise _damaged(path, f"{error}" or type(error).__name__) from error


def _read_array(file: ZipFile, entry: ZipInfo) -> NDArray[Any]:
    with file.open(entry) as stream:
        if (version := np.lib.format.read_magic(stream)) != (1, 0):
            raise ValueError(f"{entry.filename} is in version {version} of NumPy's format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != entry.file_size - stream.tell():
            raise ValueError(f"{entry.filename} does not hold the {shape} array of {dtype} that it claims to")
        stream.seek(0)
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def _damaged(path: Path, fault: str) -> DamagedFileError:
    return DamagedFileError(f"{path}: is damaged ({fault}). {AGAIN}")


def _missing(path: Path) -> HandCLIPError:
    return HandCLIPError(f"{path}: no such file; this evaluation is by an older version of HandCLIP. {AGAIN}")
