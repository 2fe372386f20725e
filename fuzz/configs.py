"""Feeds mutated experiment and study files, and mutated `--set key=value`, to their readers."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import load_config
from handclip.config.study import StudyConfig, load_study, plan_experiments
from handclip.errors import HandCLIPError

ROOT = Path(__file__).resolve().parents[1]
SEPARATOR = b"\0--set "
"""Stands between a file and each of the overrides that go with it."""

LONGEST = 1024
"""Bytes of an input."""
TOKENS = [name.encode() + b": " for name in (*ExperimentConfig.model_fields, *StudyConfig.model_fields)]
TOKENS += [
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!",
    b"? ",
    b"- ",
    b".nan",
    b".inf",
    b"1e9",
    b"type: ",
    b"\n  ",
    b"[",
    b"]",
    b"{",
    b"}",
    SEPARATOR,
]
"""What mutations may put in."""

_FOLDER = tempfile.TemporaryDirectory(prefix="handclip_fuzz_")
_FILE = Path(_FOLDER.name) / "file.yml"


def one(data: bytes) -> None:
    """Read a file, with overrides: as a study, whose experiments are spelled out, where it says so."""
    text, *overrides = data.split(SEPARATOR)
    given = [override.decode("utf-8", "replace") for override in overrides[:5]]
    _FILE.write_bytes(text)
    try:
        if b"study" in text:
            plan_experiments(load_study(_FILE, given), Path("out"))
        else:
            load_config(_FILE, given)
    except HandCLIPError as error:
        assert str(error)
        assert len(str(error)) < 100_000
        raise


def seeds() -> Iterator[bytes]:
    """The files that HandCLIP comes with, and some that say much in few words."""
    for path in sorted((ROOT / "configs").rglob("*.yml")):
        lines = (line.partition(" # ")[0] for line in path.read_text(encoding="utf-8").splitlines())
        text = "\n".join(line for line in lines if line.strip() and not line.startswith("#"))
        if len(text) < 700:  # mutating long files finds little more, and takes longer
            yield text.encode()
    small = b"experiment: a\nmodel: vitb16\ndataset: 11k\n"
    for overrides in ([b"lr=1e-3"], [b"augmentation.flip=0.5", b"dataset=hd"], [b"losses=[{type: triplet}]"]):
        yield small + b"".join(SEPARATOR + override for override in overrides)
    yield small + b"losses: [&t {type: triplet, margin: 0.3}, {<<: *t, margin: 0.5}]\nseed: 0x1F\nlr: 1:30.5\n"
    yield small + b"augmentation: {flip: .nan, scale: !!float '0.5'}\nx: !!python/name:os.system\ny: 2020-01-02\n"
    yield b"study: s\nmodels: {vit_small: {pretrained: none}}\ndata: [{dataset: hd}]\nstage0: {experiment: a}\n"
    yield (
        b"study: s\nmodels: {a: {model: vit_small, pretrained: none, losses: [ce]}}\ndata: [{dataset: 11k, aspects: "
        b"[dorsal_r, palmar_r]}]\nseeds: [0, 1]\nstage1: {experiment: a, epochs: 1}\nstage2: {experiment: b}\n"
        b"evaluate_on: [{dataset: hd}]\n"
    )
