"""Compiling the model that trains."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import shorten

import torch
from torch import Tensor

from handclip.errors import ConfigError, TrainingError
from handclip.models.encoder import ImageEncoder


def compiled_forward(encoder: ImageEncoder) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return the compiled forward method of an encoder, for training.

    The method is compiled and not the module, so that the names in its state dict stay and evaluation, which comes with
    other modes and batch sizes, does not have it compiled again.

    Raises:
        ConfigError: PyTorch cannot compile on this platform.
    """
    try:
        return torch.compile(encoder.forward)
    except RuntimeError as error:
        raise _not_compiled(error) from error


@contextmanager
def naming_compile() -> Iterator[None]:
    """Raise a ConfigError for what goes wrong in the compiler, which is at work in the first steps."""
    try:
        yield
    except RuntimeError as error:
        # Only where something has been compiled is the compiler loaded, which takes seconds.
        exceptions = sys.modules.get("torch._dynamo.exc")
        if exceptions is None or not isinstance(error, exceptions.TorchDynamoException):
            raise
        if "DataLoader worker" in str(error):  # which died meanwhile, and has nothing to do with it
            raise TrainingError(shorten(str(error), 200, placeholder=" ...")) from error
        raise _not_compiled(error) from error


def _not_compiled(error: Exception) -> ConfigError:
    reason = shorten(str(error), 200, placeholder=" ...") or type(error).__name__
    return ConfigError(
        f"compile: true: the model could not be compiled on this machine ({reason}); it trains without, more slowly, "
        "with compile: false"
    )
