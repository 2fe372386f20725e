"""What a file that should hold weights is, by its first bytes: its name says little."""

import codecs
import zipfile
from pathlib import Path
from typing import Literal

from handclip.signatures import LOOKED_AT, is_lfs_pointer, is_web_page, packed_by

Format = Literal["safetensors", "zip", "pickle"]

_OTHER_KINDS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras and TensorFlow write it",
    b"GGUF": "a GGUF file, as llama.cpp reads it",
    b"\x93NUMPY": "a NumPy array",
}


def format_of(path: Path) -> Format | None:
    """Return how tensors are stored in a file, None where its first bytes say nothing.

    Raises:
        OSError: it cannot be read.
    """
    head = _head(path)
    # Safetensors begin with the length of a JSON object, in eight bytes of which a real one leaves the last four empty.
    if head[4:9] == b"\0\0\0\0{":
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    return "pickle" if head.startswith(b"\x80") else None


def why_no_weights(path: Path, again: str) -> str | None:
    """Say what a file is and what to do, where its first bytes tell that it cannot hold weights.

    Args:
        path: the file.
        again: what to do where it is damaged.

    Raises:
        OSError: it cannot be read.
    """
    head = _head(path)
    if not head:
        return f"is damaged: it is empty, as a download or a copy leaves it that has failed. {again}"
    if is_lfs_pointer(head):
        size = next((line.split()[1] for line in head.splitlines() if line.startswith(b"size ")), b"")
        stands_for = f" of {int(size):,} bytes" if size.isdigit() else ""
        return (
            f"is a Git LFS pointer, which stands for a file{stands_for} that was not fetched. Run `git lfs pull` where "
            "it was cloned, or download the file itself"
        )
    if is_web_page(head):
        return (
            "is a web page, not weights: a page that asks to sign in or tells an error was saved in their place. "
            "Download the file itself, signed in where that is needed"
        )
    if packed := packed_by(head):
        return f"is packed by {packed}. Unpack it, and name the weights file that was in it"
    for start, kind in _OTHER_KINDS.items():
        if head.startswith(start):
            return f"is {kind}, not weights of PyTorch. Fetch those, as .safetensors or .pt"
    if head.startswith(b"PK\x03\x04"):
        return _why_no_torch_archive(path, again)
    if format_of(path) is None:
        text = _text(head)
        why = (
            f"it is text that begins with {text[:60]!r}" if text else f"none begins with the bytes {head[:8].hex(' ')}"
        )
        return f"is damaged, or is not a weights file: {why}. {again}"
    return None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LOOKED_AT)


def _text(head: bytes) -> str | None:
    try:
        # A letter may be cut in two where the file goes on.
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        text = decoder.decode(head, final=len(head) < LOOKED_AT).strip()
    except UnicodeDecodeError:
        return None
    return text if text and all(letter.isprintable() or letter.isspace() for letter in text) else None


def _why_no_torch_archive(path: Path, again: str) -> str | None:
    if not zipfile.is_zipfile(path):
        return (
            "is damaged: its end is missing, as a download or a copy leaves it that was cut off (there are "
            f"{path.stat().st_size:,} bytes). {again}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return None  # its reader says what is wrong
    if any(name.endswith("data.pkl") for name in names):
        return None
    return (
        f"is a ZIP archive without a model of PyTorch (of {len(names)} files, such as {', '.join(names[:2])!r}). "
        "Unpack it, and name the weights file that was in it"
    )
