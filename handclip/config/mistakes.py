"""Mistakes in experiment and study files, in lines that name the file, or the `--set`, and the key."""

import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from handclip.config.experiment import ExperimentConfig
from handclip.config.losses import LOSS_TYPES, suggest_loss
from handclip.config.section import ConfigSection
from handclip.errors import ConfigError, did_you_mean, nearest

_EXPECTED = {
    "experiment": "letters, digits, dots, dashes and underscores, with a letter or digit first",
    "model": "the name of a model, such as vitb16",
    "quick_gelu": "true, false or auto",
    "input_size": "a number of pixels above 0, or [height, width]",
    "input_mean": "three numbers from 0 to 1, of red, green and blue",
    "input_std": "three numbers above 0 and up to 1, of red, green and blue",
    "freeze": "none, all, or all_but_last_2, say",
    "device": "auto, cpu, mps, cuda or cuda:0, say",
    "devices": "auto, or a number from 1 up",
    "num_workers": "auto, or a number from 0 up",
}
"""What to say of the keys whose type pydantic describes by a pattern, or by several findings."""


def explained(
    error: ValidationError, section: type[ConfigSection], source: str, overrides: Sequence[str] = ()
) -> ConfigError:
    """Return the error that tells each of pydantic's findings on a line of its own.

    Args:
        error: of validating a file.
        section: what the file was to be.
        source: the file.
        overrides: `key=value`, the later ones first to blame.
    """
    lines: dict[str, str] = {}
    for number, finding in enumerate(error.errors(include_url=False)):
        key = str(finding["loc"][0]) if finding["loc"] else ""
        # Of those that can be one thing or another there is a finding for each.
        lines.setdefault(key if key in _EXPECTED else f"finding {number}", _line(finding, section))
    return ConfigError("\n".join(blame(line, source, overrides) for line in lines.values()))


def blame(line: str, source: str, overrides: Sequence[str]) -> str:
    """Put in front of an error's line the `--set` that brought it in, or else the file.

    Args:
        line: `key.of.a.section: what is wrong`, or `unknown key 'key'...`.
        source: the file.
        overrides: `key=value`, the later ones first to blame.
    """
    unknown = line.removeprefix("unknown key '")
    section = unknown.partition("'")[0]
    about = re.sub(r"\[\d+\]", "", unknown).replace(": ", ".")
    for override in reversed(overrides):
        key = override.partition("=")[0].strip()
        is_about = re.match(rf"{re.escape(key)}(?![\w-])", about)
        if is_about or (unknown != line and key.startswith(f"{section}.")):
            return f"--set {cut(override)}: {line}"
    return f"{source}: {line}"


def unknown_key(key: str, also: Sequence[str] = ()) -> str:
    """Return what to say of a top-level key that no experiment file has.

    Args:
        key: the key.
        also: keys that may stand beside an experiment's where it was found.
    """
    for loss, options in LOSS_TYPES.items():
        if key in options.model_fields and key != "type":
            return f"unknown key '{key}': it is an option of a loss; put it under `losses: - type: {loss}`"
    for name, section in _sections(ExperimentConfig).items():
        if key in _keys(section):
            return f"unknown key '{key}': it is an option of {name}; put it under `{name}:`"
    return f"unknown key '{cut(key)}'.{did_you_mean(cut(key), [*ExperimentConfig.model_fields, *also])}"


def cut(text: str, length: int = 80) -> str:
    """Return a text short enough for an error."""
    return text if len(text) <= length else f"{text[:length]}…"


def _line(finding: ErrorDetails, section: type[ConfigSection]) -> str:
    kind, got = finding["type"], f"(got {_shown(finding['input'])})"
    path = finding["loc"]
    is_in_loss = path[:1] == ("losses",) and len(path) > 2 and isinstance(path[1], int)
    keys = (*path[:2], *path[3:]) if is_in_loss else path  # without the type of the loss
    where = re.sub(r"\.(\d+)(?![^.])", r"[\1]", ".".join(cut(str(key)) for key in keys))
    key = str(path[0]) if path else ""
    if kind == "missing" and len(path) == 1:
        return f"{where}: is required"
    if key in _EXPECTED:
        return f"{key}: should be {_EXPECTED[key]} {got}"
    match kind:
        case "missing":
            return f"{where}: is required"
        case "extra_forbidden" if len(path) == 1 and section is ExperimentConfig:
            return unknown_key(key)
        case "extra_forbidden":
            if str(path[-1]) in ExperimentConfig.model_fields and section is ExperimentConfig:
                return f"unknown key '{where}': '{path[-1]}' belongs at the top level of the file"
            of = f" of loss '{path[2]}'" if is_in_loss else ""
            holder = LOSS_TYPES[str(path[2])] if is_in_loss else _sections(section).get(key, section)
            return f"unknown key '{where}'{of}.{did_you_mean(cut(str(path[-1])), _keys(holder))}"
        case "tuple_type" if where == "losses":
            return f"losses: should be a list, such as [{{type: cross_entropy}}, {{type: triplet}}] {got}"
        case "union_tag_not_found" | "model_attributes_type":
            return f"{where}: needs a type, such as {{type: triplet}} {got}"
        case "union_tag_invalid":
            given = str(finding["ctx"]["tag"])
            return f"{where}.type: there is no loss '{given}'.{suggest_loss(given)}"
        case "value_error":
            return ": ".join(filter(None, [where, str(finding["ctx"]["error"])]))
    # YAML has lists and mappings; pydantic calls them tuples and dictionaries.
    message = finding["msg"].replace("tuple", "list").replace("dictionary", "mapping")
    return f"{where}: {message[:1].lower()}{message[1:]} {got}{_meant(finding)}"


def _meant(finding: ErrorDetails) -> str:
    """Return the nearest of the words that a key may have, for one that it may not."""
    if finding["type"] != "literal_error" or not isinstance(given := finding["input"], str):
        return ""
    hint = nearest(cut(given.lower()), re.findall(r"'([^']*)'", finding["ctx"]["expected"]))
    return f".{hint}" if hint else ""


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        return "something too long to show"
    return cut(text)


def _sections(section: type[ConfigSection]) -> dict[str, type[ConfigSection]]:
    """Return the sections in a section, by key."""
    return {
        key: kind
        for key, field in section.model_fields.items()
        for kind in (field.annotation, *get_args(field.annotation))
        if isinstance(kind, type) and issubclass(kind, ConfigSection)
    }


def _keys(section: type[ConfigSection]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]
