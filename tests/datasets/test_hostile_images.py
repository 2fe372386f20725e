"""Image files that are none, that lead elsewhere, or that would fill the memory."""

import io
import os
import resource
import struct
import subprocess
import sys
import tarfile
import textwrap
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_images import encoded
from made_images import noise as noise_of
from made_images import png_chunk as chunk
from PIL import EpsImagePlugin, Image

from handclip.datasets import images
from handclip.datasets.formats import FORMATS
from handclip.datasets.images import decode_image, read_image
from handclip.datasets.inspection import inspect_image, inspect_images
from handclip.datasets.preparation import Preparation
from handclip.errors import DataError


def noise() -> Image.Image:
    return noise_of(16, 12)


def png(width: int, height: int, *between: bytes, data: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(**tags: int) -> bytes:
    """An uncompressed grey TIFF of 4x4 pixels in one strip, with other tags."""
    values = {"width": 4, "height": 4, "bits": 8, "compression": 1, "photometric": 1, "strip": 200, "rows": 4}
    values |= {"size": 16}
    codes = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "strip": 273}
    codes |= {"samples": 277, "rows": 278, "size": 279}
    codes |= {"tile_width": 322, "tile_height": 323, "tile_offset": 324, "tile_size": 325}
    entries = sorted((codes[name], value) for name, value in {**values, **tags}.items() if value is not None)
    directory = b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in entries)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + bytes(4)
    return head.ljust(200, b"\0") + bytes(16)


def webp(width: int, height: int) -> bytes:
    """An extended WebP file whose canvas is larger than its picture."""
    picture = encoded(noise(), "WEBP", lossless=True)[12:]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + picture
    return b"RIFF" + struct.pack("<I", len(body)) + body


def lossy_webp(width: int, height: int) -> bytes:
    picture = encoded(noise(), "WEBP")
    return picture[:26] + struct.pack("<HH", width, height) + picture[30:]


def lossless_webp(width: int, height: int) -> bytes:
    picture = encoded(noise(), "WEBP", lossless=True)
    return picture[:21] + struct.pack("<I", width - 1 | height - 1 << 14) + picture[25:]


def gif(width: int, height: int) -> bytes:
    return encoded(noise(), "GIF").replace(struct.pack("<HH", 16, 12), struct.pack("<HH", width, height), 1)


def tar_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def zip_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) print\n%%EOF\n"


def test_all_formats_that_are_read_are_named() -> None:
    with pytest.raises(DataError) as caught:
        decode_image(b"MZ\x90\0", "hand.jpg")
    named = str(caught.value).partition("(")[2].partition(")")[0].split(", ")
    assert tuple(named) == FORMATS and named[:2] == ["JPEG", "PNG"]


@pytest.mark.promise("hostile-images")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is an SVG drawing, not an image; save it as JPEG or PNG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!DOCTYPE svg>\n<!-- a -->\n<svg>', "is an SVG drawing"),
        (b"<!DOCTYPE html>\n<html><body>Not found", "is a web page, not an image; fetch the image itself"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page, not an image"),
        (zip_of("hand.jpg"), "is a ZIP archive, not an image; unpack it"),
        (tar_of("hand.jpg"), "is an archive, not an image; unpack it"),
        (b"\x1f\x8b\x08" + bytes(20), "is an archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "is an archive"),
        (b"7z\xbc\xaf\x27\x1c", "is an archive"),
        (b"%PDF-1.7\n", "is a PDF document, not an image; save its pages as JPEG or PNG"),
        (EPS, "is a PostScript drawing, not an image"),
        (bytes(3) + b"\x20ftypheic", "is a HEIC photograph"),
        (bytes(3) + b"\x20ftypavif", "is an AVIF photograph"),
        (bytes(3) + b"\x20ftypqt  ", "HandCLIP does not read (JPEG 2000 or a film)"),
        (encoded(noise(), "JPEG2000"), "HandCLIP does not read (JPEG 2000 or a film)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "fetch the image with git lfs pull"),
        (encoded(noise(), "TGA"), "is not an image of a known format (JPEG, PNG,"),
        (encoded(noise(), "ICO"), "is not an image of a known format"),
        (encoded(noise(), "PCX"), "is not an image of a known format"),
        (encoded(noise(), "QOI"), "is not an image of a known format"),
        (b"MZ\x90\0", "is not an image of a known format"),
    ],
)
def test_what_is_no_photograph_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "hand.jpg"
    path.write_bytes(content)
    for read in (read_image, inspect_image):
        with pytest.raises(DataError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path} ")
        assert message in str(caught.value)


@pytest.mark.promise("hostile-images")
def test_a_drawing_under_a_photographs_name_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: started.append(2))
    (tmp_path / "hand.jpg").write_bytes(EPS)
    with Image.open(tmp_path / "hand.jpg") as image:  # Pillow itself would take it
        assert image.format == "EPS"
    with pytest.raises(DataError, match="is a PostScript drawing"):
        read_image(tmp_path / "hand.jpg")
    assert not started


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_photographs_of_every_known_format_are_read(kind: str) -> None:
    assert decode_image(encoded(noise(), kind), "a").size == (16, 12)


TOO_LARGE = {
    "PNG of a wide line": (
        png(100_000, 1, data=bytes(300_001)),
        "100,000 x 1 pixels, and HandCLIP reads at most 65,535",
    ),
    "PNG of a high line": (png(1, 100_000), "1 x 100,000 pixels, and HandCLIP reads at most 65,535 a side"),
    "PNG of 100,000 pixels a side": (png(100_000, 100_000), "pixels, more than the 200 megapixels"),
    "PPM of a wide line": (b"P6 100000 1 255\n" + bytes(300_000), "at most 65,535 a side"),
    "PGM": (b"P5 30000 30000 255\n" + bytes(1000), "30,000 x 30,000 pixels, more than the 200 megapixels"),
    "GIF with a huge canvas": (gif(65535, 65535), "65,535 x 65,535 pixels, more than the 200 megapixels"),
    "WebP with a huge canvas": (webp(2**24, 2**8), "16,777,216 x 256 pixels, more than the 50 megapixels"),
    "WebP with a large canvas": (webp(16_384, 16_384), "16,384 x 16,384 pixels, more than the 50 megapixels that"),
    "WebP, lossy": (
        lossy_webp(14_000, 14_000),
        "14,000 x 14,000 pixels, more than the 50 megapixels that HandCLIP reads in",
    ),
    "WebP, lossless": (
        lossless_webp(14_000, 9_000),
        "14,000 x 9,000 pixels, more than the 50 megapixels that HandCLIP",
    ),
    "WebP of a wide line": (webp(200_000, 1), "200,000 x 1 pixels, and HandCLIP reads at most 65,535 a side"),
    "TIFF": (tiff(width=2**31, height=2**31), "megapixels"),
    "TIFF with giant tiles": (
        tiff(tile_width=2**16, tile_height=2**15, tile_offset=200, tile_size=16),
        "its tiles have 65,536 x 32,768 pixels",
    ),
}


@pytest.mark.promise("hostile-images")
@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_too_large_is_refused_before_any_pixel_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    content, message = TOO_LARGE[name]
    (tmp_path / "a.png").write_bytes(content)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    with warnings.catch_warnings(), pytest.raises(DataError) as caught:
        warnings.simplefilter("error")
        read_image(tmp_path / "a.png")
    assert message in str(caught.value)


def with_huge_sides(content: bytes) -> bytes:
    """An AVIF or HEIC file that claims 65,535 pixels a side where it says its size (the box `ispe`)."""
    start = content.index(b"ispe") + 8
    return content[:start] + struct.pack(">II", 65535, 65535) + content[start + 8 :]


def compressed(zeros: int) -> bytes:
    return b"a\0\0" + zlib.compress(bytes(zeros))


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG with a text of 2 GB": lambda: png(4, 4, chunk(b"zTXt", compressed(2**26) * 4), data=bytes(52)),
    "PNG with a colour profile of 64 MB": lambda: png(4, 4, chunk(b"iCCP", compressed(2**26)), data=bytes(52)),
    "PNG with pixels for 64 MB more": lambda: png(4, 4, data=bytes(2**26)),
    "PNG with 3,000 texts": lambda: png(4, 4, *[chunk(b"zTXt", compressed(1_000_000))] * 3_000, data=bytes(52)),
    "TIFF with giant compressed tiles": lambda: tiff(
        tile_width=2**15, tile_height=2**15, tile_offset=200, tile_size=16, compression=5
    ),
    "TIFF with a giant strip": lambda: tiff(rows=2**32 - 1, size=2**31, compression=5),
    "JPEG of 4 gigapixels": lambda: encoded(noise(), "JPEG").replace(b"\0\x0c\0\x10\x03", b"\xff\xff\xff\xff\x03"),
    **{
        f"{kind} of 4 gigapixels": lambda kind=kind: with_huge_sides(encoded(noise(), kind))
        for kind in ("AVIF", "HEIF")
        if kind in FORMATS
    },
    **{name: lambda content=content: content for name, (content, _) in TOO_LARGE.items()},
}


@pytest.mark.promise("hostile-images")
def test_bombs_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Each is read in a process that may take 400 MB more than it has."""
    for number, (name, make) in enumerate(BOMBS.items()):
        (tmp_path / f"{number} {name}.png").write_bytes(make())
    program = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from handclip.datasets.images import read_image
        from handclip.errors import DataError
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(resource.RLIMIT_AS, (taken + 400 * 2**20,) * 2)
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                read_image(path)
            except DataError as error:
                assert str(path) in str(error)
                print(path.stem, "refused")
            else:
                print(path.stem, "read")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert not [line for line in result.stderr.splitlines() if not line.startswith("TIFF")]  # libtiff's own words
    *lines, kilobytes = result.stdout.splitlines()
    assert len(lines) == len(BOMBS)
    assert int(kilobytes) < 200_000


def test_memory_that_runs_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "to_rgb", fail)
    with pytest.raises(DataError, match=r"a\.png cannot be decoded: it needs more memory than there is"):
        decode_image(encoded(noise(), "PNG"), "a.png")


@pytest.mark.promise("hostile-images")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hand.jpg")
    with pytest.raises(DataError, match=r"hand\.jpg cannot be read: it is no file but a pipe, a socket or a device"):
        read_image(tmp_path / "hand.jpg")
    with pytest.raises(DataError, match="a pipe, a socket or a device"):
        inspect_images(Preparation("folder", tmp_path), ["hand.jpg"])
    with pytest.raises(DataError, match="a pipe, a socket or a device"):
        read_image(Path("/dev/zero"))


def test_a_file_of_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "hand.bmp"
    with path.open("wb") as file:
        file.truncate(10**12)  # a sparse file: it takes no room
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"it has 1,000,000,000,000 bytes, more than the 700,000,000 that are read"):
        read_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_odd_metadata_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """As a program has it, whose warnings go to the screen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "x" * 100
    whole = encoded(noise(), "JPEG", exif=exif)
    broken = whole.replace(b"x" * 100, b"x" * 60 + b"\xff" * 40).replace(
        b"\x01\x12\0\x03\0\0\0\x01", b"\x01\x12\0\x03\xff\0\0\x01"
    )
    assert broken != whole
    spoilt = {"a.jpg": broken, "b.png": png(10_000, 9_500, depth=1, colour=0)}
    for keyword in ("default", "always"):
        with warnings.catch_warnings():
            warnings.simplefilter(keyword)
            warnings.filterwarnings("ignore", module=r"PIL\.")  # what importing the module has done
            for name, content in spoilt.items():
                try:
                    decode_image(content, name)
                except DataError as error:
                    assert name in str(error)
    program = (
        "import sys; from handclip.datasets.images import decode_image; decode_image(sys.stdin.buffer.read(), 'a')"
    )
    result = subprocess.run(
        [sys.executable, "-W", "always", "-c", program], input=broken, capture_output=True, check=False
    )
    assert result.stderr == b""
    with pytest.warns(UserWarning):
        Image.open(io.BytesIO(broken)).getexif()  # Pillow by itself warns
    assert capfd.readouterr().err == ""


# What importing the module does, which pytest undoes for each test.
without_pillow_warnings = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

SEEDS = [encoded(noise(), kind) for kind in FORMATS]


@without_pillow_warnings
@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda seed, start, new, cut: seed[: start % len(seed)] + new + seed[start % len(seed) + cut :],
            st.sampled_from(SEEDS),
            st.integers(0, 2000),
            st.binary(max_size=6),
            st.integers(0, 8),
        ),
    )
)
@example(b"")
@example(b"P7 ")
def test_any_bytes_are_an_image_or_an_error_that_names_the_file(data: bytes) -> None:
    try:
        image = decode_image(data, "hand.jpg")
    except DataError as error:
        assert str(error).startswith("hand.jpg ")
    else:
        assert image.mode == "RGB"
