"""Copies of a study for tests of `handclip audit` to tamper with, and what is found of them."""

import json
import shutil
from pathlib import Path
from typing import Any

from handclip.audit import AuditResult, Finding, Outcome, audit
from handclip.checksums import read_checksums, write_checksums
from handclip.config.loading import read_yaml
from handclip.runs.provenance import content_sha256

SMALL = {"num_splits": 2, "flip_settings": ["none"], "explained_images": 0}

RUNTIME = {"output_dir": "train_logs", "save_dir": "saved_models", "eval_dir": "eval_logs"}


GONE = object()


class Copy:
    """The same once more, to be tampered with."""

    def __init__(self, original: Path, place: Path) -> None:
        self.study = place / "study"
        shutil.copytree(original, self.study, copy_function=_copy)
        (self.evaluation,) = (self.study / "eval_logs").iterdir()
        (self.training,) = (path for path in (self.study / "train_logs").iterdir() if path.is_dir())
        self.checkpoint = self.study / "saved_models" / f"{self.training.name}.pth"

    def seal_provenance(self, folder: Path, **changes: Any) -> None:
        path = folder / "provenance.json"
        content = {**json.loads(path.read_text()), **changes}
        del content["sha256"]
        path.write_text(json.dumps({**content, "sha256": content_sha256(content)}))

    def forget_where_it_was(self, original: Path) -> None:
        """Let the records name places of another machine, as on somebody else's they would."""
        for path in (*self.study.glob("*/*/config.yml"), *self.study.glob("*/*/*.json")):
            path.write_text(path.read_text().replace(str(original), "/of/another/machine"))
        for folder in (self.evaluation, self.training):
            self.seal_provenance(folder, config_sha256=content_sha256(read_yaml(folder / "config.yml")))
            seal(folder)


def edit(file: Path, key: str, value: Any) -> None:
    """Change one value of a JSON file, such as `results.0.mean.map`, and write the checksums anew."""
    content = json.loads(file.read_text())
    inner, (*keys, last) = content, key.split(".")
    for one in keys:
        inner = inner[int(one) if isinstance(inner, list) else one]
    if value is GONE:
        del inner[int(last) if isinstance(inner, list) else last]
    else:
        inner[last] = value
    file.write_text(json.dumps(content))
    seal(file.parent)


def seal(folder: Path) -> None:
    """Write the checksums anew, as somebody would who knows of them."""
    write_checksums(folder, read_checksums(folder) or {})


def _copy(source: str, target: str) -> None:
    """Copy a file; one of many MB is linked, and must be removed before another is put in its place."""
    if source.endswith((".pth", ".ckpt")):
        Path(target).hardlink_to(source)
    else:
        shutil.copyfile(source, target)


def audited(place: Path, *, images: bool = False) -> AuditResult:
    (result,) = audit([place], images=images)
    return result


def faults(result: AuditResult) -> dict[str, Finding]:
    return {one.what: one for one in result.findings if one.outcome in (Outcome.DIFFERS, Outcome.GONE)}


def found(result: AuditResult, what: str) -> Finding:
    return next(one for one in result.findings if one.what == what)
