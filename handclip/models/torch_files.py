"""Files of tensors: written so that a full disk is said as such, refused without advice to run their code."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch

from handclip.errors import CheckpointError
from handclip.files import require_regular
from handclip.models.first_bytes import why_no_weights


@contextmanager
def refusing(path: Path, kind: str, advice: str) -> Iterator[None]:
    """Read a file in the block; what a spoilt or hostile one makes its readers raise becomes one sentence.

    Args:
        path: the file.
        kind: what it should be, for the error.
        advice: what to do where it is damaged.

    Raises:
        CheckpointError: it is not there, is no file that could hold tensors, or the block cannot read it.
    """
    try:
        require_regular(path)
        if why := why_no_weights(path, advice):
            raise CheckpointError(f"{path}: {why}")
        yield
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path}: is a folder, not a {kind}") from None
    except Exception as error:  # pickle's, zip's and safetensors' own errors have no common base
        if isinstance(error, OSError) and error.filename is not None:  # it could not even be opened
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        raise CheckpointError(f"{path}: is damaged, or is not a {kind} ({why_refused(error)}). {advice}") from error


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
