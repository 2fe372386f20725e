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
    """Write where a trained model looks in images to a folder.

    Args:
        checkpoint: the trained model.
        images: photographs; one that is named twice is explained once.
        out: folder for the files, see `write_explanations_files`.

    Raises:
        HandCLIPError: the checkpoint or an image cannot be read, no method fits the model, or a file exists already.
        InUseError: another process writes to `out`.
    """
    images = list(dict.fromkeys(images))
    with holding(out):
        _targets([str(image) for image in images], out)
        return write_explanations_files(explain_checkpoint(checkpoint, images), out)


def write_explanations_files(explanations: Sequence[Explanation], out: Path) -> list[Path]:
    """Write three files for each photograph, and return their paths.

    `<name>_explained.png` and `.svg` show the photograph and its maps. `<name>_explained.csv` holds the maps: a line
    for each method and cell, rows from the top and columns from the left, both from 0. `<name>` is that of the image
    without its ending; where several images have the same name, the second is `<name>_2`, and so on.

    Raises:
        HandCLIPError: a file exists already, or cannot be written.
    """
    written = []
    targets = _targets([one.image for one in explanations], out)
    for one, (png, svg, table) in zip(explanations, targets, strict=True):
        maps = [Maps("", method, [values]) for method, values in one.maps.items()]
        save_figure(attention_figure([(Path(one.image).name, one.photograph)], maps), out, png.stem)
        write_text(table, _as_csv(one))
        written += [png, svg, table]
    return written


def _targets(images: Sequence[str], out: Path) -> list[tuple[Path, Path, Path]]:
    """Return the files of each image: PNG, SVG and CSV.

    Raises:
        HandCLIPError: one of them exists, or the folder cannot be written to.
    """
    require_writable(out)
    taken: set[str] = set()
    targets = []
    for image in images:
        stem = Path(image).stem
        number, name = 1, stem
        while name.casefold() in taken:  # some file systems do not tell capitals apart
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.casefold())
        png, svg, table = (out / f"{name}_explained.{kind}" for kind in ("png", "svg", "csv"))
        targets.append((png, svg, table))
    for path in (path for paths in targets for path in paths):
        if is_there(path):
            raise HandCLIPError(f"{path} exists already. Remove it, or choose another folder with --out")
    return targets


def _as_csv(explanation: Explanation) -> str:
    lines: list[list[object]] = [["image", "method", "row", "column", "value"]]
    for method, values in explanation.maps.items():
        for row, line in enumerate(values.tolist()):
            lines += [[explanation.image, method, row, column, value] for column, value in enumerate(line)]
    return csv_text(lines)
