"""The tensors of a TorchScript archive, OpenAI's form of CLIP, read without running the program that it holds.

`torch.jit.load` compiles the archive's program and runs parts of it, and such a program can write files
(`torch.from_file`). The tensors lie beside it: each as plain numbers, and their names in `data.pkl`, a pickle of
modules within modules. Here that pickle can make nothing but empty modules, lists, and descriptions of tensors.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_torchscript_tensors(path: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of an archive by name.

    Raises:
        pickle.UnpicklingError: it asks for anything but modules and tensors.
        OSError, RuntimeError, ValueError, zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        records = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in records:
            raise ValueError("it has no data.pkl")
        entries = _entries(_Unpickler(io.BytesIO(archive.read(records["data.pkl"]))).load())
        storages = {}
        for storage in {entry.storage for entry in entries.values()}:
            if f"data/{storage.record}" not in records:
                raise ValueError(f"it lacks the numbers data/{storage.record}")
            numbers = bytearray(archive.read(records[f"data/{storage.record}"]))  # which checks their CRC-32
            storages[storage] = torch.frombuffer(numbers, dtype=storage.dtype) if numbers else torch.empty(0)
    # An error where a shape reaches beyond the numbers that are there.
    return {name: storages[e.storage].as_strided(e.size, e.stride, e.offset) for name, e in entries.items()}


class _Storage(NamedTuple):
    dtype: torch.dtype
    record: str


class _Entry(NamedTuple):
    """A tensor that is still in the archive."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Module:
    """Stands for every class of the archive's program; a pickle can set its attributes and nothing else."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may call: all of it is here and runs nothing."""
        if module.startswith("__torch__"):
            return type(name, (_Module,), {})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _entry
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_doublelist", "build_boollist"):
            return list
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """Return where numbers lie: the pickle names them by ("storage", type, record, device, count)."""
        kind, dtype, record, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(record, str):
            raise pickle.UnpicklingError("it describes a tensor that is none")
        return _Storage(dtype, record)


def _entry(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Entry:
    whole = all(type(number) is int and number >= 0 for number in (offset, *size, *stride))
    if not isinstance(storage, _Storage) or not whole or len(size) != len(stride):
        raise pickle.UnpicklingError("it describes a tensor that is none")
    return _Entry(storage, offset, tuple(size), tuple(stride))


def _entries(root: Any) -> dict[str, _Entry]:
    """Return the tensors of a module and of all within it, by their dotted names."""
    entries = {}
    pending, seen = [("", 0, root)], 0
    while pending:
        prefix, depth, module = pending.pop()
        seen += 1
        if not isinstance(module, _Module) or depth > _DEEPEST or seen > _MOST:
            raise ValueError("it holds no modules, or far too many")
        for name, value in vars(module).items():
            if isinstance(value, _Entry):
                entries[f"{prefix}{name}"] = value
            elif isinstance(value, _Module):
                pending.append((f"{prefix}{name}.", depth + 1, value))
    return entries


_DEEPEST, _MOST = 50, 20_000
"""Modules within each other, and modules: a few bytes can describe a module that holds itself."""
