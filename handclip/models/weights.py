"""Weights files: read without running code, fetched from the hub or from its cache."""

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub import get_session
from safetensors.torch import load_file
from torch import Tensor

from handclip.errors import CheckpointError, ConfigError, did_you_mean
from handclip.files import is_file
from handclip.models.checkpoint import FORMAT
from handclip.models.first_bytes import format_of
from handclip.models.torch_files import refusing, why_refused
from handclip.models.torchscript import read_torchscript_tensors

logger = logging.getLogger(__name__)


def weights_file(model: str, pretrained: str, tags: Sequence[str], hint: str = "") -> Path:
    """Return the file that `pretrained` names.

    Args:
        model: name of the model.
        pretrained: a path, as no tag of the model is called so.
        tags: its tags.
        hint: what to say instead of the nearest of them.

    Raises:
        ConfigError: there is no such file.
    """
    if not is_file(Path(pretrained)):
        hint = hint or did_you_mean(pretrained, ["none", *tags])
        raise ConfigError(f"pretrained: '{pretrained}' is neither a file nor a set of weights of {model}.{hint}")
    return Path(pretrained)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, of one saved by torch, or of OpenAI's TorchScript archive.

    What kind of file it is, its first bytes tell. No code in it is run: not that of a pickle, and not the program of a
    TorchScript archive.

    Returns:
        Every tensor by its name; that of one in a dictionary within the file begins with the dictionary's
        (`state_dict.visual.proj`). What wrappers put into names, `module` (DataParallel) and `_orig_mod`
        (torch.compile), is left out.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else than plain tensors.
    """
    with refusing(path, "weights file", "Fetch it again"):
        try:
            loaded = _load(path)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path}: holds more than plain weights and was not loaded, as it might run a program "
                f"({why_refused(error)}). Ask for the weights alone, best as .safetensors"
            ) from error
    if isinstance(loaded, dict) and loaded.get("format") == FORMAT:
        raise CheckpointError(f"{path}: is a HandCLIP checkpoint; to train on from it, name it under `resume_from:`")
    tensors: dict[str, Tensor] = {}
    for name, value in _tensors_in(loaded):
        if name in tensors:
            raise CheckpointError(f"{path}: holds {name} twice, with and without {' or '.join(_WRAPPERS)} in its name")
        if not _is_plain(value):
            raise CheckpointError(f"{path}: {name} is no plain tensor of shape {tuple(value.shape)}; fetch it again")
        tensors[name] = value
    if not tensors:
        raise CheckpointError(f"{path}: holds no state dict")
    return tensors


_WRAPPERS = ("module", "_orig_mod")


def _load(path: Path) -> Any:
    stored_as = format_of(path)
    if stored_as == "safetensors":
        return load_file(path)
    if stored_as == "zip" and _is_torchscript(path):
        return read_torchscript_tensors(path)
    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")  # torch warns of old pickles, which it reads or refuses all the same
        if path.suffix == ".safetensors":  # torch goes by the name
            return torch.load(file, map_location="cpu", weights_only=True)
        # Mapped, the weights that nothing asks for (a text tower's) never come into memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=stored_as == "zip")


def _tensors_in(loaded: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a dictionary and of those within it, each by its dotted name without wrappers."""
    if not isinstance(loaded, dict):
        return
    pending, seen = [("", loaded)], {id(loaded)}
    for prefix, part in pending:
        for key, value in part.items():
            if isinstance(value, Tensor):
                yield prefix + ".".join(part for part in str(key).split(".") if part not in _WRAPPERS), value
            elif isinstance(value, dict) and id(value) not in seen:  # a pickle can put a dictionary into itself
                seen.add(id(value))
                pending.append((f"{prefix}{key}.", value))


def one_model(tensors: Mapping[str, Tensor], first: re.Pattern[str], source: str) -> dict[str, Tensor] | None:
    """Return the model in a file, whatever its names begin with; of several, the one that averages the others.

    Args:
        tensors: what the file holds.
        first: matches a name that the model has once, and what stands before it in the group `place`.
        source: names the file in errors.

    Returns:
        The tensors of the model by their names in it, or None where there is none.

    Raises:
        CheckpointError: there are several, and none or more than one calls itself an average.
    """
    places = sorted({match["place"] for name in tensors if (match := first.match(name))})
    if not places:
        return None
    chosen = places[0] if len(places) == 1 else _average(places, source)
    model, beside = {}, []
    for name, value in tensors.items():
        place = max((place for place in places if name.startswith(place)), key=len, default=None)
        if place is None:
            beside.append(name)
        elif place == chosen:
            model[name.removeprefix(place)] = value
    if beside:
        logger.info(f"{source}: left out {len(beside)} tensors beside the model in {chosen[:-1]}, such as {beside[0]}.")
    return model


_AVERAGES = {"ema", "averaged", "average", "avg", "swa", "shadow", "teacher"}
"""What running averages of a model's weights are called, or a part of it: `model_ema`, `state_dict_ema`."""


def _average(places: Sequence[str], source: str) -> str:
    averages = [place for place in places if _AVERAGES & set(re.split(r"[._]", place))]
    names = ", ".join(place[:-1] or "the top" for place in places)
    if len(averages) != 1:
        raise CheckpointError(f"{source}: holds {len(places)} models ({names}). Save alone the one to use")
    logger.info(f"{source}: of {len(places)} copies of the model ({names}), {averages[0][:-1]} is taken, the average.")
    return averages[0]


def not_found(tensors: Mapping[str, Tensor], wanted: str, source: str) -> CheckpointError:
    """Return the error for a file in which no model was found.

    Args:
        tensors: what it holds.
        wanted: what was looked for, and by which names.
        source: names the file.
    """
    names = ", ".join(list(tensors)[:3])
    return CheckpointError(f"{source}: holds no {wanted}. Its {len(tensors)} tensors are others, such as {names}")


def in_float32(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with every floating-point one in float32, whatever precision the file saves space with."""
    return {key: value.float() if value.is_floating_point() else value for key, value in state_dict.items()}


def fetch(
    download: Callable[[], str], model: str, tag: str, places: Sequence[str | None], also_needed: str = ""
) -> Path:
    """Return the file of a tag from the local cache or the hub.

    Args:
        download: fetches it and returns its path.
        model: name of the model, for the error.
        tag: name of the weights, for the error.
        places: where they are published, for the error; see `on_the_hub`.
        also_needed: a line that the config needs where it names the file in place of the tag.

    Raises:
        CheckpointError: it is neither cached nor can be fetched; says which file to copy here.
    """
    try:
        with _giving_up_at_once():
            return Path(download())
    except Exception as error:  # every transport of the hub's client has errors of its own
        raise CheckpointError(
            f"the weights '{tag}' of {model} are not cached here and could not be fetched ({type(error).__name__}).\n"
            f"Fetch {', or '.join(filter(None, places))} on a machine with a network, copy the file here, and name it "
            "in the config:\n"
            f"  pretrained: path/to/the/file" + (f"\n  {also_needed}" if also_needed else "")
        ) from error


def on_the_hub(repository: str, file: str) -> str:
    """Say where a file lies on the hub."""
    return f"{file} of https://huggingface.co/{repository}"


@contextmanager
def _giving_up_at_once() -> Iterator[None]:
    """Use the hub's cache alone where the hub cannot be reached; left to itself its client retries for a minute."""
    offline = hub_constants.HF_HUB_OFFLINE
    try:
        get_session().head(hub_constants.ENDPOINT, timeout=10)
    except Exception:  # whatever the transport raises
        hub_constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = offline


def _is_torchscript(path: Path) -> bool:
    """Whether a ZIP file is a TorchScript archive, after checking that unpacking it does not fill the memory."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            # Torch compresses nothing but the program, which is not read.
            if member.compress_type != zipfile.ZIP_STORED and "/code/" not in member.filename:
                raise ValueError(f"{member.filename} in it is compressed, which torch never does")
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor holds as many numbers as its shape says; one number can claim to be a quadrillion."""
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()
