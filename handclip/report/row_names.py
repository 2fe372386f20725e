"""What tells the rows of a table apart."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from handclip.config.experiment import ExperimentConfig
from handclip.report.matrix import RunRow


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
    alike: dict[object, list[RunRow]] = {}
    for row in rows:
        alike.setdefault(_names(row), []).append(row)
    return [_options_text(row, alike[_names(row)]) for row in rows]


def _names(row: RunRow) -> object:
    return row.stage, row.model, row.losses, row.seed, str(row.trained_on)


def _options_text(row: RunRow, alike: Sequence[RunRow]) -> str:
    every = [_options(one) for one in alike]
    keys = sorted({key for options in every for key in options})
    differing = [key for key in keys if len({_value_text(key, options) for options in every}) > 1]
    own = _options(row)
    return ", ".join(f"{key} {_value_text(key, own)}" for key in differing)


def _options(row: RunRow) -> dict[str, object]:
    """Return the options of a run, and beside them the manifest that it was trained on."""
    known = row.trained_on is not None and row.trained_on.manifest_sha256
    return _flat(row.options) | ({"manifest": known[:8]} if known else {})


def _value_text(key: str, options: Mapping[str, object]) -> str:
    value = options.get(key, _defaults().get(key, "default"))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _flat(options: Mapping[str, Any]) -> dict[str, object]:
    """Give each option of a loss and of a section a key of its own, such as `triplet.margin`."""
    flat: dict[str, object] = {}
    for key, value in options.items():
        if key == "losses":
            flat |= {f"{loss['type']}.{option}": loss[option] for loss in value for option in loss if option != "type"}
        elif isinstance(value, dict):
            flat |= {f"{key}.{option}": part for option, part in value.items()}
        else:
            flat[key] = value
    return flat


@cache
def _defaults() -> Mapping[str, object]:
    defaults = {
        key: field.get_default(call_default_factory=True)
        for key, field in ExperimentConfig.model_fields.items()
        if key != "losses" and not field.is_required()
    }
    plain = {key: value.model_dump() if hasattr(value, "model_dump") else value for key, value in defaults.items()}
    return _flat(plain)
