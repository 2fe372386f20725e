"""Weights are known by their first bytes, not by their names."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as to_safetensors

from handclip.errors import CheckpointError
from handclip.models.checkpoint import Checkpoint
from handclip.models.weights import read_state_dict

STATE = {"visual.conv1.weight": torch.arange(6.0).view(2, 3), "visual.n": torch.tensor(3)}
SUFFIXES = [".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".tar", ""]


def zipped() -> bytes:
    file = io.BytesIO()
    torch.save(STATE, file)
    return file.getvalue()


def legacy() -> bytes:
    file = io.BytesIO()
    torch.save(STATE, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [to_safetensors(STATE), zipped(), legacy()], ids=["safetensors", "zip", "legacy"])
def test_weights_load_whatever_their_name_ends_in(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    found = read_state_dict(path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(value, STATE[key]) for key, value in found.items())


def tar_of(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("weights.pt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zip_of(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/weights.pt", content)
    return file.getvalue()


def numpy_archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, weight=np.zeros(3))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 598641023\n"
NO_WEIGHTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "LFS": (lambda: LFS, r"is a Git LFS pointer, .* of 598,641,023 bytes that was not fetched\. Run `git lfs pull`"),
    "page": (lambda: b"\n <!DOCTYPE html>\n<html><head><title>Sign in</title>", r"is a web page, not weights"),
    "XML": (lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", r"is a web page, not weights"),
    "marked page": (lambda: b"\xef\xbb\xbf<html><head><title>Sign in</title>", r"is a web page, not weights"),
    "page with comments": (lambda: b"<!-- a > b -->\n<!---->\n<html><body>", r"is a web page, not weights"),
    "long text": (lambda: "größer ".encode() * 999, r"it is text that begins with 'größer größer"),
    "short binary": (lambda: b"\xfa\xfb\xfc model \xfd\xfe\xff", r"none begins with the bytes fa fb fc 20 6d"),
    "zstd": (lambda: b"\x28\xb5\x2f\xfd" + bytes(100), r"is packed by zstd"),
    "text": (lambda: b"Entry not found", r"it is text that begins with 'Entry not found'"),
    "JSON": (lambda: b'{"error": "Repository not found"}', r"it is text that begins with '\{\"error\": "),
    "gzip": (lambda: gzip.compress(zipped()), r"is packed by gzip\. Unpack it, and name the weights file"),
    "tar": (lambda: tar_of(zipped()), r"is packed by tar\. Unpack it"),
    "zip": (lambda: zip_of(zipped()), r"is a ZIP archive without a model of PyTorch \(of 1 files, such as 'model/wei"),
    "numpy": (numpy_archive, r"is a ZIP archive without a model of PyTorch \(of 1 files, such as 'weight\.npy'"),
    "Keras": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), r"is an HDF5 file, as Keras and TensorFlow write it"),
    "empty": (lambda: b"", r"is damaged: it is empty"),
    "zeros": (lambda: bytes(1000), r"is damaged, or is not a weights file: none begins with the bytes 00 00 00"),
    "cut off": (lambda: zipped()[:-100], r"is damaged: its end is missing, .* \(there are [\d,]+ bytes\)"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_is_no_weights_file_is_called_by_its_name(tmp_path: Path, kind: str, suffix: str) -> None:
    make, message = NO_WEIGHTS[kind]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert "might run a program" not in str(caught.value)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.load(path)
    assert "may be loaded" not in str(caught.value)


@pytest.mark.parametrize("name", ["run.pth", "run.safetensors"])
def test_safetensors_are_no_handclip_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(to_safetensors(STATE))
    with pytest.raises(CheckpointError, match=r"is not a HandCLIP checkpoint\. Weights of .* `pretrained:`"):
        Checkpoint.load(tmp_path / name)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("content", [to_safetensors(STATE), legacy()], ids=["safetensors", "legacy"])
def test_cut_off_weights_are_called_damaged(tmp_path: Path, content: bytes, keep: float) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        read_state_dict(path)
    assert "might run a program" not in str(caught.value)
