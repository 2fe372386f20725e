"""What a data set's files are, by their names: photographs that are read, others, and what is none."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from handclip.datasets.formats import ENDINGS, IMAGE_EXTENSIONS, WHAT_READS, phone_format
from handclip.files import opened
from handclip.plurals import counted


@dataclass(frozen=True)
class Kind:
    """Files that are not read, although they are, or may hold, photographs."""

    one: str
    advice: str
    """What to do with them."""
    endings: str = ""
    plural: str = ""
    """Where that is not the singular and an s."""

    @property
    def many(self) -> str:
        """What several are called."""
        return self.plural or f"{self.one}s"


def use_pattern(pattern: str) -> str:
    """Return how to ask for a pattern."""
    return f"add --pattern '{pattern}' (in a config, pattern: \"{pattern}\")"


_SAVE = "save them as JPEG or PNG"
_ASK = "ask for the right to read them"
KINDS: Mapping[str, Kind] = {
    "heic": Kind("HEIC photograph", f"{WHAT_READS['HEIF']} reads them", ENDINGS["HEIF"]),
    "avif": Kind("AVIF photograph", f"{WHAT_READS['AVIF']} reads them", ENDINGS["AVIF"]),
    "jpeg_2000": Kind("JPEG 2000 photograph", _SAVE, ".jp2 .j2k .j2c .jpc .jpf .jpx .jpm .jph"),
    "jpeg_xl": Kind("JPEG XL photograph", _SAVE, ".jxl"),
    "camera_raw": Kind(
        "camera raw file",
        "export them as JPEG or TIFF",
        ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .k25 .kdc .mef .mos .mrw .nef .nrw .orf .pef .ptx .raf "
        ".raw .rw2 .rwl .sr2 .srf .srw .x3f",
    ),
    "other_image": Kind(
        "image of another format",
        _SAVE,
        ".ai .bpg .dcm .djvu .emf .eps .exr .fits .hdp .hdr .ico .jps .jxr .pam "
        ".pcx .pfm .psb .psd .qoi .sgi .svg .svgz .tga .wdp .wmf .wsq .xcf",
        "images of other formats",
    ),
    "pdf": Kind("PDF document", "save their pages as JPEG or PNG", ".pdf"),
    "video": Kind(
        "video",
        "save pictures of them as JPEG or PNG",
        ".3g2 .3gp .avi .flv .m2ts .m4v .mjpeg .mjpg .mkv .mov .mp4 .mpeg .mpg .mts .ogv .webm .wmv",
    ),
    "archive": Kind(
        "archive", "unpack them", ".7z .bz2 .cab .dmg .gz .iso .lzh .rar .tar .tbz2 .tgz .txz .xz .zip .zst"
    ),
    "ending": Kind(
        "image whose name does not end as that of an image",
        "give them the ending of their format, such as .jpg",
        plural="images whose names do not end as those of images",
    ),
    "not_jpg": Kind("image that is not .jpg", "save them as JPEG, as all of HD are", plural="images that are not .jpg"),
    "loose": Kind(
        "photograph in no identity's folder",
        "put them into folders; or where their names begin with the identity, as in anna_1.jpg, "
        + use_pattern("{identity}_*"),
        plural="photographs in no identity's folder",
    ),
    "nested": Kind(
        "photograph in a folder inside an identity's",
        "move them up into the identity's folder",
        plural="photographs in folders inside an identity's",
    ),
    "unmatched": Kind(
        "photograph that the pattern does not match",
        "write a pattern that does, if they belong to the data set",
        plural="photographs that the pattern does not match",
    ),
    "closed": Kind("folder that may not be read", _ASK, plural="folders that may not be read"),
    "closed_inside": Kind(
        "folder inside an identity's that may not be read",
        _ASK,
        plural="folders inside an identity's that may not be read",
    ),
}
"""Each kind of what is left out, by the name that it has in a manifest."""

_KIND_OF = {ending: name for name, kind in KINDS.items() for ending in kind.endings.split()}
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")


def is_image_name(name: str) -> bool:
    """Whether a file is one of the photographs that are read, by its name; hidden ones are none."""
    return PurePath(name).suffix.lower() in IMAGE_EXTENSIONS and not name.startswith(".")


def kind_of(file: Path) -> str | None:
    """Return which of `KINDS` a file is that is no `is_image_name`; None for what has nothing to do with photographs.

    Where its name does not tell, its first bytes do.
    """
    if file.name.startswith("."):
        return None
    return _KIND_OF.get(file.suffix.lower()) or _kind_of_content(file)


def _kind_of_content(file: Path) -> str | None:
    start = b""
    with suppress(OSError):
        if not file.is_symlink():  # which may lead out of the data set
            with opened(file) as content:
                start = content.read(64)
    if start.startswith(_BEGINNINGS) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return "ending"
    kind = {"AVIF": "avif", "HEIF": "heic"}.get(phone_format(start) or "")
    return "ending" if f".{kind}" in IMAGE_EXTENSIONS else kind


def describe_counts(counts: Mapping[str, int]) -> list[str]:
    """Return how many there are of each of `KINDS`, as `12 HEIC photographs`."""
    return [
        counted(count, KINDS[kind].one, KINDS[kind].many) if kind in KINDS else f"{count:,} of kind {kind}"
        for kind, count in counts.items()
    ]
