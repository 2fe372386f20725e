"""What a shell may offer to complete `--set` with."""

from typing import Any, Literal, get_args, get_origin

from handclip.config.experiment import ExperimentConfig


def overrides() -> list[str]:
    """Return `key=value` for each value of those keys of an experiment that have but a few."""
    fields = ExperimentConfig.model_fields.items()
    return [f"{key}={value}" for key, field in fields for value in _choices(field.annotation)]


def _choices(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if get_origin(annotation) is tuple:
        return []  # a list, of which one value is none
    return [value for part in get_args(annotation) for value in _choices(part)]
