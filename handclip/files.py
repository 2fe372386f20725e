"""Writing files so that no reader ever sees half of one."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from handclip.errors import HandCLIPError


def cache_folder() -> Path:
    """Return the folder of what can be made anew, `$XDG_CACHE_HOME/handclip`, else `~/.cache/handclip`.

    Raises:
        HandCLIPError: the user has no home folder, as in some containers, and `XDG_CACHE_HOME` is not set.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "handclip"
    except RuntimeError as error:
        raise HandCLIPError(
            "there is no home folder to keep a cache in; set the environment variable XDG_CACHE_HOME to a folder"
        ) from error


def require_writable(folder: Path) -> None:
    """Check that files can be written to a folder, or that it can be made, before hours are spent on what goes there.

    Raises:
        HandCLIPError: something that is not a folder is in its place, or permission is lacking.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise HandCLIPError(f"cannot write {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise HandCLIPError(f"cannot write {folder}: {existing} is read-only")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` on success, remove it on failure.

    What is in the file is on the disk before it has its name, so that not even a power cut leaves half of one.

    Raises:
        HandCLIPError: the folder or file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise HandCLIPError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # a parent that is no folder was reported above
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; refuses NaN, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        HandCLIPError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HandCLIPError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise HandCLIPError(f"{path}: is damaged or is not JSON ({error})") from error
