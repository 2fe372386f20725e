"""What every part of an experiment file has in common."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A part of the file: unknown keys are errors, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Refuse true where a number is wanted: YAML reads `yes` and `on` as true, and Python takes true for 1."""
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        for key, value in values.items() if isinstance(values, dict) else ():
            field = fields.get(key) if isinstance(key, str) else None
            if isinstance(value, bool) and field and bool not in (field.annotation, *get_args(field.annotation)):
                raise ValueError(
                    f"{key}: cannot be {str(value).lower()} (which is also how YAML reads yes, no, on, off)"
                )
        return values
