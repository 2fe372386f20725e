"""From a YAML file (and `--set key=value`) to an `ExperimentConfig`, with errors that name the file and the key."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from handclip.config.experiment import Augmentation, ExperimentConfig
from handclip.config.losses import LOSS_TYPES, suggest_loss
from handclip.errors import ConfigError, did_you_mean


def load_config(path: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read an experiment file.

    Args:
        path: the YAML file.
        overrides: `key=value` with the value in YAML; `augmentation.flip=0.5` reaches into a section.

    Raises:
        ConfigError: the file is missing or is no YAML mapping; a key is unknown, given twice or misplaced; a value
            has the wrong type or range.
    """
    values = read_yaml(path)
    for override in overrides:
        _apply(override, values)
    return parse_config(values, source=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level maps keys to values."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = sorted(str(other) for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = did_you_mean(str(path), beside) if beside else f" There are no .yml files in {path.parent}/."
        raise ConfigError(f"{path}: no such file.{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        values = yaml.load(text, _UniqueKeyLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: should map keys to values, such as `model: vitb16`")
    return values


def parse_config(values: Mapping[str, Any], source: str) -> ExperimentConfig:
    """Validate plain values; `source` is named in errors."""
    try:
        return ExperimentConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {line}" for line in _explain(error))) from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets a later key silently replace an earlier one; in an experiment that is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def _apply(override: str, values: dict[str, Any]) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override}: should be key=value, such as --set aspect=palmar_l")
    try:
        value = yaml.load(text, _UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from error
    *sections, last = key.strip().split(".")
    target = values
    for section in sections:
        inner = target.get(section) or {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: '{section}' is not a section; give the whole of {section}=...")
        target[section] = inner = dict(inner)
        target = inner
    target[last] = value


def _explain(error: ValidationError) -> Iterator[str]:
    """Turn pydantic's findings into lines that name the key."""
    for finding in error.errors(include_url=False):
        location = [str(part) for part in finding["loc"] if str(part) not in LOSS_TYPES]
        if finding["type"] == "extra_forbidden":
            yield _unknown_key(location, finding["loc"])
        elif finding["type"] == "missing":
            yield f"{_dotted(location)}: is required"
        elif finding["type"] in ("union_tag_invalid", "union_tag_not_found"):
            given = finding["input"].get("type") if isinstance(finding["input"], dict) else finding["input"]
            if given is None:
                yield f"{_dotted(location)}: needs a type, such as `type: triplet`"
            else:
                yield f"{_dotted(location)}.type: there is no loss '{given}'.{suggest_loss(str(given))}"
        elif finding["type"] == "value_error":
            message = str(finding["ctx"]["error"])
            yield f"{_dotted(location)}: {message}" if location else message
        else:
            yield f"{_dotted(location)}: {_lower_first(finding['msg'])} (got {finding['input']!r})"


def _unknown_key(location: list[str], raw_location: tuple[int | str, ...]) -> str:
    *section, key = location
    if not section:
        known = list(ExperimentConfig.model_fields)
        for loss in LOSS_TYPES.values():
            if key in loss.model_fields and key != "type":
                return f"unknown key '{key}': it is an option of a loss; put it under `losses: - type: {_tag(loss)}`"
        if key in Augmentation.model_fields:
            return f"unknown key '{key}': it is an option of augmentation; put it under `augmentation:`"
    elif section[0] == "losses":
        tag = next((str(part) for part in raw_location if str(part) in LOSS_TYPES), "")
        known = list(LOSS_TYPES[tag].model_fields) if tag else list(LOSS_TYPES)
    else:
        known = list(Augmentation.model_fields)
    if section and key in ExperimentConfig.model_fields:
        return f"unknown key '{_dotted(location)}': '{key}' belongs at the top level of the file"
    return f"unknown key '{_dotted(location)}'.{did_you_mean(key, known)}"


def _tag(loss: type[Any]) -> str:
    return next(name for name, other in LOSS_TYPES.items() if other is loss)


def _dotted(location: Sequence[str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if part.isdigit() else f".{part}" if text else part
    return text


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
