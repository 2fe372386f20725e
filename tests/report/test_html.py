import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handclip.errors import HandCLIPError
from handclip.report import html
from handclip.report.figures.style import FigureFiles
from handclip.report.html import render_page
from handclip.report.report_writer import Block, Commands, Heading, Note, Picture, Section, Text
from handclip.report.table import Column, Table

MADE = {"Version": "HandCLIP 1.2.3", "From": "two runs"}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


class Page(HTMLParser):
    """The elements of a page, each with its attributes, and the text of those that were closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1], " ".join(data.split())))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(*blocks: Block) -> str:
    return render_page("Title", ["Lead."], [Section("part", "Part", "What?", blocks)], made=MADE)


def picture(
    folder: Path,
    name: str = "figure",
    *,
    pixels: tuple[int, int] = (1280, 720),
    photographic: bool = False,
    svg: str = SVG,
) -> Picture:
    files = FigureFiles(folder / "figures" / f"{name}.png", folder / "figures" / f"{name}.svg")
    files.png.parent.mkdir(exist_ok=True)
    Image.new("RGB", pixels, "white").save(files.png, dpi=(160, 160))
    files.svg.write_text(svg)
    return Picture(files, alt=f"alt of {name}", caption=f"caption of {name}", photographic=photographic)


def noisy_picture(folder: Path, name: str) -> Picture:
    """A photograph that does not compress."""
    made = picture(folder, name, photographic=True)
    noise = np.random.default_rng(len(name)).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(made.files.png)
    return made


def test_the_page_has_every_part_in_order() -> None:
    sections = [Section("first", "First part", "What is first?", []), Section("second", "Second part", "And then?", [])]
    page = Page(render_page("The title", ["The finding.", "The rest."], sections, made=MADE))
    assert page.texts[0] == ("title", "The title")
    words = [(tag, text) for tag, text in page.texts if tag not in ("title", "style")]
    assert words == [
        ("a", "Skip to the results"), ("h1", "The title"), ("p", "The finding."), ("p", "The rest."),
        ("h2", "Contents"), ("a", "First part"), ("a", "Second part"),
        ("h2", "First part"), ("p", "What is first?"), ("h2", "Second part"), ("p", "And then?"),
        ("h2", "How this page was made"),
        ("dt", "Version"), ("dd", "HandCLIP 1.2.3"), ("dt", "From"), ("dd", "two runs"),
    ]  # fmt: skip
    assert [link["href"] for link in page.all("a")] == ["#main", "#first", "#second"]
    assert [section["id"] for section in page.all("section")] == ["first", "second"]
    assert page.all("html") == [{"lang": "en"}]


def test_text_heading_commands_and_notes() -> None:
    blocks = [Heading("A heading"), Text("A paragraph."), Note("Few people."), Note("No maps.", "missing")]
    text = page_of(*blocks, Commands(["first --line", "  second"]))
    page = Page(text)
    assert ("h3", "A heading") in page.texts and ("p", "A paragraph.") in page.texts
    assert "<code>first --line\n  second</code>" in text
    for kind, word, note in (("warning", "Caution", "Few people."), ("missing", "Missing", "No maps.")):
        assert {"class": f"note {kind}"} in page.all("p")
        assert page.texts[page.texts.index(("strong", word)) + 1] == ("p", note)


def test_a_table_is_told_row_by_row() -> None:
    table = Table(
        [Column("run", "Run"), Column("eer", "EER", numeric=True)],
        [{"run": "one", "eer": 1.0}, {"run": "two"}],
        "Errors.",
        Path("any/tables/eer.csv"),
    )
    page = Page(page_of(table))
    cells = [(tag, text) for tag, text in page.texts if tag in ("th", "td", "figcaption")]
    assert cells == [
        ("figcaption", "Errors."), ("th", "Run"), ("th", "EER"), ("th", "one"), ("td", "1.0"),
        ("th", "two"), ("td", "-"),
    ]  # fmt: skip
    assert [cell["scope"] for cell in page.all("th")] == ["col", "col", "row", "row"]
    assert [cell["class"] for cell in page.all("td")] == ["number short", "number short"]
    assert ["number" in str(cell["class"]) for cell in page.all("th")[:2]] == [False, True]
    assert ("a", "tables/eer.csv") in page.texts
    assert page.all("a")[-1]["href"] == "tables/eer.csv"
    assert "Numbers:" not in page_of(Table([Column("run", "Run")], [{"run": "one"}], "Runs."))


def test_a_picture_is_inside_the_page_at_its_natural_size(tmp_path: Path) -> None:
    page = Page(page_of(picture(tmp_path, "det")))
    (image,) = page.all("img")
    assert image["alt"] == "alt of det"
    assert (image["width"], image["height"]) == ("768", "432")  # 8 x 4.5 inches of 96 pixels
    assert str(image["src"]).startswith("data:image/svg+xml;base64,")
    assert ("figcaption", "caption of det") in page.texts
    assert [link["href"] for link in page.all("a")][-2:] == ["figures/det.svg", "figures/det.png"]


@pytest.mark.parametrize(
    ("photographic", "svg", "kind"),
    [(False, SVG, "svg+xml"), (True, SVG, "png"), (False, SVG + " " * 400_000, "png")],
    ids=["drawing", "photograph", "large drawing"],
)
def test_a_drawing_is_svg_and_photographs_are_png(tmp_path: Path, photographic: bool, svg: str, kind: str) -> None:
    (image,) = Page(page_of(picture(tmp_path, photographic=photographic, svg=svg))).all("img")
    assert str(image["src"]).startswith(f"data:image/{kind};")


def test_nothing_in_the_page_leads_out_of_it(tmp_path: Path) -> None:
    text = page_of(picture(tmp_path), Table([Column("a", "a")], [{"a": "b"}], "c", tmp_path / "tables" / "t.csv"))
    page = Page(text)
    addresses = [
        str(value) for _, attributes in page.elements for key, value in attributes.items() if key in ("src", "href")
    ]
    assert addresses and all(address.startswith(("data:", "#", "tables/", "figures/")) for address in addresses)
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert not page.all("script") and not re.search(r"@import|url\(", text)


def test_the_largest_pictures_give_way_as_often_as_they_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, noisy = picture(tmp_path, "small", photographic=True), noisy_picture(tmp_path, "noisy")
    size = len(page_of(small, noisy))
    monkeypatch.setattr(html, "_FOR_PICTURES", size)
    assert "data:image/webp" not in page_of(small, noisy)
    assert page_of(noisy, noisy).count("data:image/webp") == 2
    monkeypatch.setattr(html, "_FOR_PICTURES", size - 100_000)
    text = page_of(small, noisy)
    images = Page(text).all("img")
    assert [str(image["src"])[:15] for image in images] == ["data:image/png;", "data:image/webp"]
    assert len(text) < size
    shown = Image.open(BytesIO(b64decode(str(images[1]["src"]).split(",")[1])))
    assert (shown.format, shown.size) == ("WEBP", (200, 200))


def test_a_page_that_stays_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "MOST_BYTES", 30_000)
    monkeypatch.setattr(html, "_FOR_PICTURES", 1_000)
    with pytest.raises(HandCLIPError, match=r"^Title: the page has .* MB.* figures/noisy.png.* Report fewer runs"):
        page_of(noisy_picture(tmp_path, "noisy"))


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = picture(tmp_path, "gone")
    gone.files.svg.unlink()
    with pytest.raises(HandCLIPError, match=r"cannot read .*gone\.svg: No such file"):
        page_of(gone)


def test_the_same_page_has_the_same_bytes(tmp_path: Path) -> None:
    shown = picture(tmp_path)
    assert page_of(shown) == page_of(shown)
