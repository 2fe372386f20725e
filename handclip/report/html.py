"""The page of a report: one HTML file with its pictures inside, which needs no network and runs no script."""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from handclip.errors import HandCLIPError
from handclip.report.report_writer import Picture, Section

MOST_BYTES = 15_000_000
"""A larger page is too slow to open and too large to send."""

_FOR_PICTURES = MOST_BYTES - 1_000_000  # words and tables have the rest
_MOST_SVG_BYTES = 400_000  # so many points or letters are drawn slowly; a PNG is smaller then
_WEBP_QUALITY = 80
_CSS_PIXELS_PER_INCH = 96


def render_page(title: str, lead: Sequence[str], sections: Sequence[Section], *, made: Mapping[str, str]) -> str:
    """Return the page as HTML; `figures/` and `tables/`, whose files it names, lie beside it.

    Args:
        title: headline of the page.
        lead: what was found, in a few paragraphs.
        sections: parts of the page, each listed in the contents; their anchors are unique.
        made: what the foot of the page says about how it was made: `{"Version": "HandCLIP 0.1.0"}`.

    Raises:
        HandCLIPError: a picture cannot be read, or the page is larger than `MOST_BYTES`.
    """
    pictures = [block for section in sections for block in section.blocks if isinstance(block, Picture)]
    embedded = _embed(pictures)
    environment = Environment(
        loader=PackageLoader("handclip.report", "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, finalize=_keep_together,
    )  # fmt: skip
    environment.globals |= {
        "embedded": embedded,
        "kind": lambda block: type(block).__name__,
        "beside_page": _beside_page,
    }
    page = environment.get_template("report.html.j2").render(title=title, lead=lead, sections=sections, made=made)
    size = len(page.encode())
    if size > MOST_BYTES:
        largest = sorted(embedded, key=lambda picture: -len(embedded[picture].uri))[:3]
        names = ", ".join(_beside_page(picture.files.png) for picture in largest)
        raise HandCLIPError(
            f"{title}: the page has {size / 1e6:.1f} MB, more than the {MOST_BYTES / 1e6:.0f} MB that open at once."
            + (f" Its largest pictures are {names}." if names else "")
            + " Report fewer runs at a time."
        )
    return page


@dataclass(frozen=True)
class _Embedded:
    """A picture as the page holds it, and its natural size in CSS pixels."""

    uri: str
    width: int
    height: int


def _embed(pictures: Sequence[Picture]) -> dict[Picture, _Embedded]:
    """Return each picture in the best form for which there is room: the largest give way first."""
    try:
        forms = {picture: _forms(picture) for picture in pictures}
        chosen = {picture: next(forms[picture]) for picture in forms}
        while forms and sum(len(chosen[picture]) for picture in pictures) > _FOR_PICTURES:
            largest = max(forms, key=lambda picture: len(chosen[picture]))
            smaller = next(forms[largest], None)
            if smaller is None:
                del forms[largest]
            elif len(smaller) < len(chosen[largest]):
                chosen[largest] = smaller
        return {picture: _Embedded(uri, *_natural_size(picture.files.png)) for picture, uri in chosen.items()}
    except OSError as error:
        raise HandCLIPError(f"cannot read {error.filename or 'a figure'}: {error.strerror or error}") from error


def _forms(picture: Picture) -> Iterator[str]:
    """Yield a picture's data URIs, from the best form to the smallest: SVG, PNG, WebP."""
    png, svg = picture.files.png, picture.files.svg
    if not picture.photographic and svg.stat().st_size <= _MOST_SVG_BYTES:
        yield _data_uri("svg+xml", svg.read_bytes())
    yield _data_uri("png", png.read_bytes())
    with Image.open(png) as image, BytesIO() as webp:
        image.convert("RGB").save(webp, "WEBP", quality=_WEBP_QUALITY)
        yield _data_uri("webp", webp.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode('ascii')}"


def _natural_size(png: Path) -> tuple[int, int]:
    with Image.open(png) as image:
        dots_per_inch = image.info.get("dpi", (_CSS_PIXELS_PER_INCH, _CSS_PIXELS_PER_INCH))
        width, height = (
            round(_CSS_PIXELS_PER_INCH * pixels / dots)
            for pixels, dots in zip(image.size, dots_per_inch, strict=True)
        )  # fmt: skip
    return width, height


def _keep_together(value: Any) -> Any:
    """Let no line end between a number and its percent sign."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if isinstance(value, str) else value


def _beside_page(path: Path) -> str:
    """Return `tables/eer.csv` for that file of a report, wherever the report lies."""
    return f"{path.parent.name}/{path.name}"
