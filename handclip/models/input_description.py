"""How the input of weights is normalised and resized: by a published tag, or by a file that stands beside them."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from pydantic import TypeAdapter, ValidationError

from handclip.config.experiment import INPUT_KEYS, InputMean, InputStd, Interpolation
from handclip.datasets.transforms import CLIP_MEAN, CLIP_STD
from handclip.errors import CheckpointError, ConfigError, HandCLIPError, did_you_mean
from handclip.files import is_file, read_json_object
from handclip.models.clip_encoder import architecture, open_clip_name

logger = logging.getLogger(__name__)

_TYPES: dict[str, TypeAdapter[Any]] = {
    "mean": TypeAdapter(InputMean),
    "std": TypeAdapter(InputStd),
    "interpolation": TypeAdapter(Interpolation),
}
"""What weights are trained with. How photographs of another shape are resized is not among it: all models squash them
unless the config says otherwise, as the protocol does."""

_BESIDE_OPEN_CLIP = "open_clip_config.json"
_BESIDE_TRANSFORMERS = ("preprocessor_config.json", "config.json")
_BESIDE_TIMM = "config.json"
_THEIRS = {"image_mean": "mean", "image_std": "std", "resample": "interpolation"}
_PILLOWS = {"2": "bilinear", "3": "bicubic"}
"""How Pillow numbers its filters."""


@dataclass(frozen=True)
class Description:
    """What one source says of weights."""

    source: str
    values: Mapping[str, Any]
    """`mean`, `std` and `interpolation`, as far as it says them."""
    quick_gelu: bool | None = None


OPENAI = Description("OpenAI's form", {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic"}, True)


def of_tag(model: str, tag: str) -> Description:
    """Return what open_clip knows of published weights.

    Raises:
        ConfigError: it publishes none of this name for the model.
    """
    entry = open_clip.get_pretrained_cfg(open_clip_name(model), tag)
    if not entry:
        known = open_clip.list_pretrained_tags_by_model(open_clip_name(model))
        raise ConfigError(f"pretrained_tag: open_clip has no weights '{tag}' of {model}.{did_you_mean(tag, known)}")
    values = {name: entry.get(name, value) for name, value in OPENAI.values.items()}
    quick_gelu = bool(entry.get("quick_gelu") or architecture(model).get("quick_gelu"))
    return Description(f"open_clip {tag}", values, quick_gelu)


def beside_clip(path: Path, model: str, *, transformers: bool, given: Collection[str] = ()) -> Description | None:
    """Read what stands beside a CLIP's weights: open_clip's description, or that of the transformers library.

    Args:
        path: the weights file.
        model: what it is to be loaded as; a description of another one is left alone.
        transformers: the weights have that library's layout.
        given: names that the config says itself, and which are not looked at.

    Raises:
        CheckpointError: such a file is damaged, or holds values that cannot be.
    """
    found = _beside_transformers(path, given) if transformers else None
    return found or _beside_open_clip(path, model, given)


def beside_resnet(path: Path, given: Collection[str] = ()) -> Description | None:
    """Read the `config.json` that timm puts beside weights.

    Raises:
        CheckpointError: it is damaged, or holds values that cannot be.
    """
    place = path.with_name(_BESIDE_TIMM)
    said = (_read(place) or {}).get("pretrained_cfg")
    if not isinstance(said, dict):
        return None
    # Photographs are resized as for CLIP's models, whatever a CNN was trained with.
    return _taken(Description(str(place), _checked(said, ("mean", "std"), given, place)), path)


def _beside_open_clip(path: Path, model: str, given: Collection[str]) -> Description | None:
    place = path.with_name(_BESIDE_OPEN_CLIP)
    content = _read(place)
    if content is None:
        return None
    described, said = content.get("model_cfg"), content.get("preprocess_cfg")
    if isinstance(described, dict) and (other := _other_architecture(described, architecture(model))):
        logger.info(f"{place} is not used: it describes another model than {model} ({other}).")
        return None
    quick_gelu = bool(described.get("quick_gelu")) if isinstance(described, dict) else None
    if not isinstance(said, dict):
        return Description(str(place), {}, quick_gelu)
    values = {**OPENAI.values, **{name: value for name, value in said.items() if value is not None}}
    return _taken(Description(str(place), _checked(values, tuple(_TYPES), given, place), quick_gelu), path)


def _beside_transformers(path: Path, given: Collection[str]) -> Description | None:
    of_input, of_model = (path.with_name(name) for name in _BESIDE_TRANSFORMERS)
    said, described = _read(of_input), _read(of_model)
    if said is None and described is None:
        return None
    values: dict[str, Any] = {}
    if said is not None:
        named = {name: said[theirs] for theirs, name in _THEIRS.items() if said.get(theirs) is not None}
        resample = named.get("interpolation", 3)  # as their CLIP has it where nothing is said
        named["interpolation"] = _PILLOWS.get(str(resample), resample)
        values = _checked(named, tuple(_TYPES), given, of_input)
    quick_gelu = None
    if described is not None and str(described.get("model_type")).startswith("clip"):
        inner = described.get("vision_config")
        # The library writes only what differs from its own default, which is this.
        quick_gelu = (inner if isinstance(inner, dict) else described).get("hidden_act", "quick_gelu") == "quick_gelu"
    return _taken(Description(str(of_input if said is not None else of_model), values, quick_gelu), path)


def _read(place: Path) -> dict[str, Any] | None:
    if not is_file(place):
        return None
    try:
        return read_json_object(place)
    except HandCLIPError as error:
        raise CheckpointError(f"{error}. It stands beside the weights: mend it, or move it away") from error


def _checked(values: Mapping[str, Any], wanted: Sequence[str], given: Collection[str], place: Path) -> dict[str, Any]:
    checked = {}
    for name in sorted(values.keys() & wanted):
        try:
            checked[name] = _TYPES[name].validate_python(values[name])
        except ValidationError as error:
            if name in given:  # the config says it, and this is not used
                continue
            raise CheckpointError(
                f"{place}: {name}: {values[name]!r} cannot be used: {error.errors()[0]['msg']}. Say "
                f"{INPUT_KEYS[name]} in the config, or move the file away from the weights"
            ) from error
    return checked


def _other_architecture(described: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """Return the first thing in which open_clip's descriptions of two models differ, as far as both say it."""
    theirs, ours = described.get("vision_cfg"), own["vision_cfg"]
    if not isinstance(theirs, dict):
        return None
    for name in ("embed_dim", "timm_model_name", "layers", "width", "patch_size"):
        one, other = (part.get(name, whole.get(name)) for part, whole in ((theirs, described), (ours, own)))
        if None not in (one, other) and one != other:
            return f"{name}: {one}, not {other}"
    return None


def _taken(description: Description, path: Path) -> Description:
    if description.values:
        said = ", ".join(f"{INPUT_KEYS[name]}: {shown(value)}" for name, value in description.values.items())
        logger.info(f"{path}: {description.source} says {said}.")
    return description


def agreed(descriptions: Sequence[Description], given: Collection[str], path: Path) -> Description:
    """Return what several sources say of the same weights.

    Raises:
        ConfigError: they contradict each other in something that the config does not say itself.
    """
    values: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    for one in descriptions:
        for name, value in {**one.values, "quick_gelu": one.quick_gelu}.items():
            if value is None:
                continue
            if not _same(values.setdefault(name, value), value) and name not in given:
                raise ConfigError(
                    f"pretrained: {path}: {said_by[name]} says {name}: {shown(values[name])}, but {one.source} says "
                    f"{shown(value)}. Name the right weights, or move what is wrong away from them"
                )
            said_by.setdefault(name, one.source)
    quick_gelu = values.pop("quick_gelu", None)
    return Description(", ".join(dict.fromkeys(said_by.values())), values, quick_gelu)


def require_known(model: str, path: Path, known: Collection[str]) -> None:
    """Check that what is not known of weights in a file is the same for all that are published of their model.

    Args:
        model: what they are loaded as.
        path: the file.
        known: names in `Preprocessing` of what the config or another source says of them.

    Raises:
        ConfigError: it is not; lists the tags and what to write.
    """
    unknown = _TYPES.keys() - set(known)
    tags = {tag: of_tag(model, tag) for tag in open_clip.list_pretrained_tags_by_model(open_clip_name(model))}
    if all(one.values[name] == OPENAI.values[name] for one in tags.values() for name in unknown):
        return
    alike: dict[str, list[str]] = {}
    for tag, one in tags.items():
        alike.setdefault(", ".join(f"{INPUT_KEYS[name]}: {shown(one.values[name])}" for name in _TYPES), []).append(tag)
    lines = []
    for said, (first, *others) in sorted(alike.items(), key=lambda item: len(item[1])):
        also = f"; as {', '.join(others[:3])}{' and others' if others[3:] else ''}" if others else ""
        lines.append(f"  pretrained_tag: {first}  # {said}{also}")
    lacking = ", ".join(INPUT_KEYS[name] for name in _TYPES if name in unknown)
    what = "how its input is normalised" if len(unknown) == len(_TYPES) else f"its {lacking}"
    raise ConfigError(
        f"pretrained: {path} does not say {what}, and not all published weights of {model} have OpenAI's. Add to the "
        "config which of them it holds, or was trained from:\n"
        + "\n".join(lines)
        + f"\nor what is lacking itself ({lacking}), or put its {_BESIDE_OPEN_CLIP} beside it"
    )


def with_given(known: Mapping[str, Any], given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return what is known of weights with what the config says itself, which holds; where they differ, a warning."""
    for name, value in given.items():
        if name in known and not _same(known[name], value):
            logger.warning(
                f"{INPUT_KEYS[name]}: {shown(value)} is used, though {source} was trained with {shown(known[name])}."
            )
    return {**known, **given}


def shown(value: Any) -> str:
    """Return a value as a config has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same, but for the last digits of numbers that somebody has rounded."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return all(abs(a - b) < 1e-3 for a, b in zip(one, other, strict=True))
    return bool(one == other)
