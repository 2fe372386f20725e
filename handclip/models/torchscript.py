"""The tensors of a TorchScript archive, OpenAI's form of CLIP, read without running the program that it holds.

`torch.jit.load` compiles the archive's program and runs parts of it, and such a program can write files
(`torch.from_file`). The tensors lie beside it: each as plain numbers, and their names in `data.pkl`, a pickle of
modules within modules. Here that pickle can make nothing but empty modules, lists, and tensors of these numbers.
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
_DEEPEST, _MOST = 50, 20_000
"""Modules within each other, and modules: a few bytes can describe a module that holds itself."""


def read_torchscript_tensors(path: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers of an archive by their dotted names.

    Raises:
        pickle.UnpicklingError: it asks for anything but modules and tensors.
        KeyError, OSError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        records = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in records:
            raise ValueError("it has no data.pkl")
        root = _Unpickler(archive, records).load()
    tensors: dict[str, Tensor] = {}
    pending, seen = [("", 0, root)], 0
    while pending:
        prefix, depth, module = pending.pop()
        seen += 1
        if not isinstance(module, _Module) or depth > _DEEPEST or seen > _MOST:
            raise ValueError("it holds no modules, or far too many")
        for name, value in vars(module).items():
            if isinstance(value, _Held):
                tensors[f"{prefix}{name}"] = value.tensor
            elif isinstance(value, _Module):
                pending.append((f"{prefix}{name}.", depth + 1, value))
    return tensors


class _Module:
    """Stands for every class of the archive's program; a pickle can set its attributes and nothing else."""


class _Held(NamedTuple):
    """A tensor that the pickle can name, and do nothing else with: `Tensor` itself lets one set its state."""

    tensor: Tensor


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, records: dict[str, str]) -> None:
        super().__init__(io.BytesIO(archive.read(records["data.pkl"])))
        self._archive, self._records = archive, records
        self._numbers: dict[tuple[torch.dtype, str], _Held] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may call: all of it is here and runs nothing."""
        if module.startswith("__torch__"):
            return type(name, (_Module,), {})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _shaped
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_doublelist", "build_boollist"):
            return list
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> _Held:
        """Return numbers: the pickle names them by ("storage", type, record, device, count)."""
        kind, dtype, record, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("it describes a tensor that is none")
        if f"data/{record}" not in self._records:
            raise ValueError(f"it lacks the numbers data/{record}")
        if (dtype, record) not in self._numbers:
            numbers = bytearray(self._archive.read(self._records[f"data/{record}"]))  # which checks their CRC-32
            held = torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0)
            self._numbers[dtype, record] = _Held(held)
        return self._numbers[dtype, record]


def _shaped(numbers: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Held:
    if not isinstance(numbers, _Held):
        raise pickle.UnpicklingError("it describes a tensor that is none")
    # An error where a shape reaches beyond the numbers that are there.
    return _Held(numbers.tensor.as_strided(size, stride, offset))
