"""What every part of an experiment file has in common."""

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic.fields import FieldInfo

from handclip.config.yaml_text import numbers_meant
from handclip.files import at_home

HomePath = Annotated[Path, BeforeValidator(lambda path: at_home(str(path)) if isinstance(path, (str, Path)) else path)]
"""A path in which the home folder takes the place of a leading `~`."""


class ConfigSection(BaseModel):
    """A part of the file: unknown keys are errors, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:
        """Refuse, where a number is wanted, true, which Python takes for 1, and texts that could be several numbers."""
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(key, str) and key in fields:
                _require_number(key, value, fields[key])
        return values

    @property
    def changed(self) -> set[str]:
        """The keys whose value is not the default, so that a resolved config can be read again."""
        return {key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default}


def _require_number(key: str, value: Any, field: FieldInfo) -> None:
    if isinstance(value, bool) and bool not in (field.annotation, *get_args(field.annotation)):
        raise ValueError(f"{key}: cannot be {str(value).lower()}")
    if _mentions(field.annotation, int) or _mentions(field.annotation, float):
        for text in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(text, str) and (meant := numbers_meant(text)):
                digits = " or ".join(meant)
                raise ValueError(f"{key}: should be a number in plain digits, such as {digits} (got {text!r})")


def _mentions(annotation: Any, kind: type) -> bool:
    """Whether a type is part of an annotation."""
    return annotation is kind or any(_mentions(part, kind) for part in get_args(annotation))
