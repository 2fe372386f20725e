"""`handclip explain`: where a trained model looks in any image, as figures and as numbers."""

from collections.abc import Sequence
from pathlib import Path

from handclip.csv_files import csv_text
from handclip.errors import HandCLIPError
from handclip.files import is_there, require_writable, write_text
from handclip.locks import holding
from handclip.report.figures.attention import Maps, attention_figure
from handclip.report.figures.style import save_figure
from handclip.runs.artifacts import Explanation
from handclip.runs.explanations import explain_checkpoint


def explain_to_files(checkpoint: Path, images: Sequence[Path], out: Path) -> list[Path]:
    """Write where a trained model looks in images to a folder: three files for each, whose paths are returned.

    `<name>_explained.png` and `.svg` show the photograph and its maps. `<name>_explained.csv` holds the maps: a line
    for each method and cell, rows from the top and columns from the left, both from 0. `<name>` is that of the image
    without its ending; where several images have the same name, the second is `<name>_2`, and so on.

    Args:
        checkpoint: the trained model.
        images: photographs; one that is named twice is explained once.
        out: folder for the files.

    Raises:
        HandCLIPError: the checkpoint or an image cannot be read, no method fits the model, or a file exists already or
            cannot be written.
        InUseError: another process writes to `out`.
    """
    images = list(dict.fromkeys(images))
    written = []
    with holding(out):
        names = _free_names(images, out)
        for name, one in zip(names, explain_checkpoint(checkpoint, images), strict=True):
            maps = [Maps("", method, [values]) for method, values in one.maps.items()]
            figure = save_figure(attention_figure([(Path(one.image).name, one.photograph)], maps), out, name)
            table = out / f"{name}.csv"
            write_text(table, _as_csv(one))
            written += [figure.png, figure.svg, table]
    return written


def _free_names(images: Sequence[Path], out: Path) -> list[str]:
    """Return what the files of each image are called, without their endings.

    Raises:
        HandCLIPError: one of them exists, or the folder cannot be written to.
    """
    require_writable(out)
    names: dict[str, str] = {}  # some file systems do not tell capitals apart
    for image in images:
        number, name = 1, f"{image.stem}_explained"
        while name.casefold() in names:
            number += 1
            name = f"{image.stem}_{number}_explained"
        names[name.casefold()] = name
    for path in (out / f"{name}.{kind}" for name in names.values() for kind in ("png", "svg", "csv")):
        if is_there(path):
            raise HandCLIPError(f"{path} exists already. Remove it, or choose another folder with --out")
    return list(names.values())


def _as_csv(explanation: Explanation) -> str:
    lines: list[list[object]] = [["image", "method", "row", "column", "value"]]
    for method, values in explanation.maps.items():
        for row, line in enumerate(values.tolist()):
            lines += [[explanation.image, method, row, column, value] for column, value in enumerate(line)]
    return csv_text(lines)
