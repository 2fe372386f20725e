"""Files in PyTorch's format: written so that a full disk is said as such, refused without advice to run their code."""

import hashlib
import re
from typing import IO, Any, cast

import torch


def write_torch(content: Any, file: IO[bytes]) -> str:
    """Write what `torch.save` writes; return the SHA-256 of the bytes, hexadecimal.

    Raises:
        OSError: the file cannot be written.
    """
    hashed = _Hashed(file)
    torch.save(content, cast(IO[bytes], hashed))
    return hashed.finish()


def why_refused(error: BaseException) -> str:
    """Say why `torch.load(weights_only=True)` did not load a file.

    Its own words on a pickle that would run something go on to advise doing without the protection.
    """
    if match := re.search(r"\bGLOBAL ([\w.]+)", str(error)):
        return f"it asks for {match[1]}"
    if "weights_only" in str(error):
        return "its pickle is no plain one"
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


class _Hashed:
    """A file that is hashed while it is written: a second copy of a large model would not fit beside the first.

    What goes wrong is kept until `finish`: torch, where a write fails, hides a full disk behind an error of its own.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._failure: OSError | None = None

    def write(self, content: bytes) -> int:
        if self._failure is None:
            self._digest.update(content)
            try:
                self._file.write(content)
            except OSError as error:
                self._failure = error
        return memoryview(content).nbytes

    def flush(self) -> None:
        """Leave it to `finish`."""

    def finish(self) -> str:
        if self._failure is not None:
            raise self._failure
        self._file.flush()
        return self._digest.hexdigest()
