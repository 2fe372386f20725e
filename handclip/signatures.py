"""What is found in place of the file that its name promises, photograph or weights, by its first bytes."""

import re

LOOKED_AT = 2048
"""How many bytes suffice."""

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
}
_TAR = slice(257, 262)
# Behind a byte order mark, space and comments; what is matched once is not tried in another way (`(?>...)*+`), as that
# would take forever in a hostile file.
_WEB_PAGE = re.compile(
    rb"(\xef\xbb\xbf)?(?>\s|<!--.*?-->)*+<(!doctype\s+html|\?xml|html|head|body)\b", re.DOTALL | re.IGNORECASE
)


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file stands for one that Git LFS has not fetched."""
    return head.startswith(b"version https://git-lfs.github.com/spec/")


def is_web_page(head: bytes) -> bool:
    """Whether a file is HTML or XML, as where a server has answered with an error."""
    return _WEB_PAGE.match(head) is not None


def packed_by(head: bytes) -> str | None:
    """Return what has packed a file, other than ZIP, which is also a format of weights."""
    if head[_TAR] == b"ustar":
        return "tar"
    return next((packer for start, packer in _PACKED.items() if head.startswith(start)), None)
