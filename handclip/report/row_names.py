"""What tells the rows of a table apart."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from handclip.config.experiment import ExperimentConfig
from handclip.report.matrix import RunRow

_DEFAULT = "default"
"""What an option of a loss is where the run does not say."""


def distinguishing_columns(rows: Sequence[RunRow]) -> list[str]:
    """Return which of `seed`, `trained_on` and `differs_by` have to be shown beside stage, model and losses."""
    columns = []
    if len({row.seed for row in rows}) > 1:
        columns.append("seed")
    if len({str(row.trained_on) for row in rows if row.trained_on is not None}) > 1:
        columns.append("trained_on")
    if any(row.differs_by for row in rows):
        columns.append("differs_by")
    return columns


def differs_by(rows: Sequence[RunRow]) -> list[str]:
    """Return for each row how it differs from rows that would read the same: in options, in manifest, else in name.

    A row that no other reads like has an empty text.
    """
    texts = differing_options(rows)
    seen = [(_names(row), text) for row, text in zip(rows, texts, strict=True)]
    return [
        f"{text}, run {row.run}".removeprefix(", ") if seen.count(names) > 1 else text
        for row, text, names in zip(rows, texts, seen, strict=True)
    ]


def differing_options(rows: Sequence[RunRow]) -> list[str]:
    """Return for each row its options, and its manifest, where rows that would read the same differ in them."""
    options = [_options(row) for row in rows]
    alike: dict[object, list[Mapping[str, str]]] = {}
    for row, own in zip(rows, options, strict=True):
        alike.setdefault(_names(row), []).append(own)
    return [_difference(own, alike[_names(row)]) for row, own in zip(rows, options, strict=True)]


def _names(row: RunRow) -> object:
    return row.stage, row.model, row.losses, row.seed, str(row.trained_on)


def _difference(own: Mapping[str, str], alike: Sequence[Mapping[str, str]]) -> str:
    keys = sorted({key for options in alike for key in options})
    differing = [key for key in keys if len({options.get(key, _DEFAULT) for options in alike}) > 1]
    return ", ".join(f"{key} {own.get(key, _DEFAULT)}" for key in differing)


def _options(row: RunRow) -> dict[str, str]:
    """Return every option of a run as text, and beside them the manifest that it was trained on."""
    known = row.trained_on is not None and row.trained_on.manifest_sha256
    return {**_defaults(), **_texts(row.options), **({"manifest": known[:8]} if known else {})}


def _texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Give each option of a loss and of a section a key of its own, such as `triplet.margin`."""
    flat: dict[str, object] = {}
    for key, value in options.items():
        if key == "losses":
            flat |= {f"{loss['type']}.{option}": loss[option] for loss in value for option in loss if option != "type"}
        elif isinstance(value, dict):
            flat |= {f"{key}.{option}": part for option, part in value.items()}
        else:
            flat[key] = value
    return {key: _text(value) for key, value in flat.items()}


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


@cache
def _defaults() -> Mapping[str, str]:
    defaults = {
        key: field.get_default(call_default_factory=True)
        for key, field in ExperimentConfig.model_fields.items()
        if key != "losses" and not field.is_required()
    }
    plain = {key: value.model_dump() if hasattr(value, "model_dump") else value for key, value in defaults.items()}
    return _texts(plain)
