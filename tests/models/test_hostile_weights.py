"""Weights files that would run a program, fill the memory, or hold numbers that are none."""

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from handclip.errors import CheckpointError, HandCLIPError
from handclip.models.checkpoint import Checkpoint
from handclip.models.clip_weights import load_clip_weights
from handclip.models.resnet_weights import load_resnet_weights
from handclip.models.state_dict import load_checked
from handclip.models.weights import read_state_dict

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]


class _Program:
    """Makes a file where it is unpickled by a reader that runs what it reads."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


LOADERS: dict[str, Callable[[Path], object]] = {
    "weights": read_state_dict,
    "clip": lambda path: load_clip_weights("vit_small", str(path)),
    "resnet": lambda path: load_resnet_weights("resnet50", str(path)),
    "mbanet": lambda path: load_resnet_weights("mbanet", str(path)),
    "checkpoint": Checkpoint.load,
}


def save_zip(content: object, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.promise("no-code")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("save", [save_zip, save_legacy, save_pickle])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_pickle_that_would_run_a_program_is_refused(
    tmp_path: Path, loader: str, save: Callable[[object, Path], None], suffix: str
) -> None:
    path, trace = tmp_path / f"weights{suffix}", tmp_path / "trace"
    save({"visual.proj": torch.zeros(2), "extra": _Program(trace)}, path)
    with pytest.raises(CheckpointError, match=r"weights\.\w+: (holds more than plain weights|is damaged)") as refused:
        LOADERS[loader](path)
    assert "weights_only" not in str(refused.value)  # as advice to read it without protection
    assert not trace.exists()
    if save is save_pickle:
        pickle.loads(path.read_bytes())
        assert trace.exists()  # the program was a live one


def make_archive(path: Path, *, pickled: bytes | None = None) -> dict[str, Tensor]:
    """Save a small TorchScript archive, with another `data.pkl` if one is given; return what torch reads from it."""
    root = nn.Module()
    root.visual = nn.Module()
    root.visual.conv1 = nn.Conv2d(3, 4, 2)
    root.visual.norm = nn.BatchNorm1d(4).half()
    root.visual.tied = nn.Linear(4, 4)
    root.visual.narrow = nn.Parameter(torch.arange(12.0).view(3, 4).T, requires_grad=False)
    root.register_buffer("input_resolution", torch.tensor(64))
    root.register_buffer("empty", torch.zeros(0, 3))
    script = torch.jit.script(root)
    script.save(str(path))
    if pickled is not None:
        replace_records(path, {"data.pkl": pickled})
    return dict(script.state_dict())


def replace_records(path: Path, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, records.get(name.partition("/")[2], data))


def test_an_archive_gives_what_torch_reads_from_it(tmp_path: Path) -> None:
    expected = make_archive(tmp_path / "clip.pt")
    got = read_state_dict(tmp_path / "clip.pt")
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value), name


@pytest.mark.promise("no-code")
def test_no_program_of_an_archive_is_compiled_or_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("torch was asked to load the program")

    make_archive(tmp_path / "clip.pt")
    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch._C, "import_ir_module", refuse)
    assert "visual.conv1.weight" in read_state_dict(tmp_path / "clip.pt")


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n("
STORAGE = b"(X\x07\0\0\0storagectorch\nHalfStorage\nX\x01\0\0\0%bX\x03\0\0\0cpuK\x04tQ"
MODULE = b"\x80\x02c__torch__.clip\nModule\n)\x81}(X\x01\0\0\0a%bub."


def tensor_of(size: bytes, stride: bytes, record: bytes = b"0") -> bytes:
    return MODULE % (TENSOR + STORAGE % record + b"K\0" + size + stride + b"\x89ccollections\nOrderedDict\n)RtR")


QUADRILLION = b"(\x8a\x08" + (10**15).to_bytes(8, "little") + b"t"


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"cposix\nsystem\n(X\x09\0\0\0touch herettR.", "holds more than plain weights"),
        (b"cbuiltins\neval\n(X\x01\0\0\x001tR.", "it asks for builtins.eval"),
        (b"c__torch__.a\nModule\n)R(dX\x0c\0\0\0__setstate__X\x01\0\0\0as.", "it holds no modules"),
        (tensor_of(QUADRILLION, b"(K\x01t"), "is damaged"),
        (tensor_of(QUADRILLION, b"(K\0t"), "a is no plain tensor of shape (1000000000000000,)"),
        (tensor_of(b"(J\xff\xff\xff\xfft", b"(K\x01t"), "is damaged"),
        (tensor_of(b"(K\x01t", b"(K\x01t", b"z"), "it lacks the numbers data/z"),
        (MODULE % b"h\0", "was not loaded"),
        (
            b"\x80\x02c__torch__.clip\nModule\n)\x81q\0}(X\x01\0\0\0ah\0X\x01\0\0\0bh\0ub.",
            "it holds no modules, or far",
        ),
        (b"", "is damaged"),
        (b"\x80\x02]q\0(h\0e.", "it holds no modules"),
    ],
)
def test_an_archive_with_another_pickle_is_refused(tmp_path: Path, pickled: bytes, message: str) -> None:
    path = tmp_path / "clip.pt"
    make_archive(path, pickled=pickled)
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert not (Path.cwd() / "here").exists()


def test_a_flipped_bit_in_an_archive_is_found(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    make_archive(path)
    with zipfile.ZipFile(path) as archive:
        [record] = [item for item in archive.infolist() if item.filename.endswith("data/3")]
    content = bytearray(path.read_bytes())
    names, extra = struct.unpack_from("<HH", content, record.header_offset + 26)
    content[record.header_offset + 30 + names + extra] ^= 1  # the first byte of the numbers, after header and padding
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged, or is not a weights file .*CRC"):
        read_state_dict(path)


@pytest.mark.promise("hostile-weights")
@pytest.mark.parametrize("archive", [True, False])
def test_a_zip_that_unpacks_to_far_more_is_refused(tmp_path: Path, archive: bool) -> None:
    path = tmp_path / "clip.pt"
    make_archive(path) if archive else torch.save({"visual.a": torch.zeros(9)}, path)
    replace_records(path, {"data.pkl": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="is compressed, which torch never does"):
        read_state_dict(path)


def test_one_number_that_claims_to_be_a_quadrillion_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"visual.a": torch.zeros(1, dtype=torch.half).expand(10**15)}, path)
    with pytest.raises(CheckpointError, match=r"weights\.pt: visual\.a is no plain tensor of shape"):
        load_clip_weights("vit_small", str(path))


@pytest.mark.parametrize(
    "value",
    [torch.zeros(3, device="meta"), torch.zeros(4).to_sparse()],
    ids=["meta", "sparse"],
)
def test_a_tensor_that_is_none_is_refused(tmp_path: Path, value: Tensor) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"visual.a": value}, path)
    with pytest.raises(CheckpointError, match=r"visual\.a is no plain tensor"):
        read_state_dict(path)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.promise("hostile-weights")
@pytest.mark.parametrize(
    "content",
    [
        safetensors({"a": ENTRY}, bytes(8), length=2**63),
        safetensors({"a": ENTRY}, bytes(8), length=10**6),
        safetensors({"a": ENTRY}, bytes(4)),
        safetensors({"a": ENTRY}, bytes(12)),
        safetensors({"a": {**ENTRY, "shape": [10**15]}}, bytes(8)),
        safetensors({"a": {**ENTRY, "shape": [2**62, 4]}}, bytes(8)),
        safetensors({"a": {**ENTRY, "data_offsets": [0, 2**62]}}, bytes(8)),
        safetensors({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8)),
        safetensors({"a": {**ENTRY, "dtype": "F31"}}, bytes(8)),
        safetensors([1]),
        bytes(7),
    ],
)
def test_a_safetensors_file_that_lies_about_itself_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: is damaged, or is not a weights file"):
        read_state_dict(path)


@pytest.mark.promise("hostile-weights")
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["weight", "running_mean"])
def test_weights_that_are_no_numbers_are_refused_and_named(wrong: float, kind: str) -> None:
    model = nn.BatchNorm1d(3)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    load_checked(model, state, "a.pt")
    state[kind][1] = wrong
    with pytest.raises(CheckpointError, match=rf"a\.pt: {kind} holds NaN or infinite numbers"):
        load_checked(model, state, "a.pt")
    assert torch.isfinite(model.state_dict()[kind]).all()


def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {"visual.a": torch.randn(4, 4), "visual.b": torch.arange(3)}
    makers: dict[str, Callable[[Path], object]] = {
        "zip.pt": lambda path: torch.save(state, path),
        "legacy.pt": lambda path: save_legacy(state, path),
        "archive.pt": make_archive,
        "hub.safetensors": lambda path: save_file(state, path),
    }
    for name, make in makers.items():
        path = tmp_path / name
        make(path)
        whole = path.read_bytes()
        for _ in range(150):
            content = bytearray(whole)
            for position in torch.randint(len(whole), (3,), generator=generator).tolist():
                content[position] ^= 1 << int(torch.randint(8, (1,), generator=generator))
            path.write_bytes(content)
            try:
                read_state_dict(path)
            except HandCLIPError as error:
                assert name in str(error)
