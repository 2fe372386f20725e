"""From a YAML file (and `--set key=value`) to an `ExperimentConfig`, with errors that name the file and the key."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from handclip.config.experiment import DataConfig, ExperimentConfig, aspects_of
from handclip.config.mistakes import blame, cut, explained
from handclip.config.naming import run_name
from handclip.config.yaml_text import load_yaml
from handclip.errors import ConfigError, HandCLIPError, missing_file
from handclip.file_names import CONFIG, METRICS_FILE
from handclip.files import is_file, is_folder, is_there, read_limited

MAX_BYTES = 1_000_000
"""Of an experiment or study file; those that HandCLIP comes with have two thousand."""


def load_config(path: Path, overrides: Sequence[str] = (), *, to_train: bool = False) -> ExperimentConfig:
    """Read an experiment file.

    Args:
        path: the YAML file.
        overrides: `key=value` with the value in YAML; `augmentation.flip=0.5` reaches into a section. With another
            `dataset`, what the file says of its own is forgotten, as `on_other_data` does.
        to_train: check also that the run which a `resume_from` names by its experiment file or folder has a model,
            and, by its file, one of the same data.

    Raises:
        ConfigError: the file is missing, too large or is no YAML mapping; a key is unknown, given twice or misplaced; a
            value has the wrong type or range.
    """
    asked = _read(path, overrides)
    config = _with_models(asked, str(path), overrides)
    if to_train and asked.resume_from != config.resume_from:
        try:
            _require_model(asked, config)
        except HandCLIPError as error:
            raise ConfigError(blame(f"resume_from: {error}", str(path), overrides)) from error
    return config


def _read(path: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    values = read_yaml(path)
    data: dict[str, Any] = {}
    for override in overrides:
        apply_override(override, data if _is_about_data(override) else values)
    return _validated(on_other_data(values, data), str(path), overrides)


DATA_KEYS = DataConfig.model_fields.keys() - {"allow_missing"}
"""Keys that say which images are used."""


def on_other_data(values: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment's values with other data.

    Args:
        values: what an experiment file holds.
        data: the keys to change. Where `dataset` becomes another one, the `data_root`, `manifest` and `pattern` of
            `values` are dropped, which are of the former, and so is an `aspect` that the new one does not have.
    """
    before, now = (str(part.get("dataset")).lower() for part in (values, {**values, **data}))
    if "dataset" not in values or before == now:
        return {**values, **data}
    dropped = {"data_root", "manifest", "pattern"}
    if values.get("aspect") not in aspects_of(now):
        dropped.add("aspect")
    return {**{key: value for key, value in values.items() if key not in dropped}, **data}


def _is_about_data(override: str) -> bool:
    return override.partition("=")[0].strip() in DATA_KEYS


def load_trained_config(path: Path, overrides: Sequence[str]) -> ExperimentConfig | None:
    """Read an experiment file without the overrides that change its data: what a cross-domain evaluation evaluates.

    Args:
        path: the YAML file.
        overrides: as in `load_config`; those of other keys stay.

    Returns:
        None where no override changes the data, or where the file alone is no whole experiment.
    """
    staying = [override for override in overrides if not _is_about_data(override)]
    if len(staying) == len(overrides):
        return None
    try:
        return load_config(path, staying)
    except ConfigError:
        return None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level maps keys to values.

    Raises:
        ConfigError: it is missing, no regular file, no such YAML, or larger than `MAX_BYTES` or `yaml_text.MAX_VALUES`.
    """
    try:
        text = read_limited(path, MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise missing_file(path, "*.yml") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a name with NUL in it, too
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    values = _parse_yaml(text, source=str(path))
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: should map keys to values, such as `model: vitb16`")
    return values


def parse_config(values: Mapping[str, Any], source: str) -> ExperimentConfig:
    """Validate plain values by key, and find the checkpoint of a run that one of them names.

    Raises:
        ConfigError: each mistake on a line of its own, with `source`, where they stand.
    """
    return _with_models(_validated(values, source), source)


def _validated(values: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    try:
        return ExperimentConfig.model_validate(dict(values))
    except ValidationError as error:
        raise explained(error, ExperimentConfig, source, overrides) from error


def _with_models(
    config: ExperimentConfig, source: str, overrides: Sequence[str] = (), later: Sequence[Path] = ()
) -> ExperimentConfig:
    """Return a config in which a model stands where it names the experiment file or the folder of a run.

    Args:
        config: the config.
        source: where it stands, for errors.
        overrides: as in `parse_config`.
        later: the absolute paths of the experiment files and run folders that have led here by their `resume_from`.
    """
    found = {}
    for key in ("resume_from", "checkpoint"):
        try:
            found[key] = _model(getattr(config, key), later)
        except HandCLIPError as error:
            raise ConfigError(blame(f"{key}: {error}", source, overrides)) from error
    return config.model_copy(update=found)


def _model(named: Path | None, later: Sequence[Path]) -> Path | None:
    is_experiment = named is not None and named.suffix in (".yml", ".yaml")
    if named is None or named.suffix == ".pth" or not (is_experiment or is_folder(named)):
        return named
    if (place := named.absolute()) in later:
        raise ConfigError(f"{named}: this experiment goes on from itself")
    file = named if is_experiment else named / CONFIG
    if not is_experiment and not is_file(file):
        raise ConfigError(f"{named}: is not the folder of a run, which holds a {CONFIG}")
    # It is read as it stands: what is changed on the command line is the later run's.
    config = _with_models(_read(file), str(file), later=[*later, place])
    if is_experiment:
        return _best_model(named, config)
    # The best model of a training, or the one that an evaluation is of; it may have moved with its study.
    found = (config.checkpoint if is_file(named / METRICS_FILE) else None) or _best_model(named, config)
    beside = named.resolve().parent.parent / found.parent.name / found.name
    return beside if is_there(beside) and not is_there(found) else found


def _best_model(source: Path, config: ExperimentConfig) -> Path:
    if config.variant == "baseline":
        raise ConfigError(f"{source}: is a baseline, which trains no model")
    return config.save_dir / f"{run_name(config)}.pth"


def _require_model(asked: ExperimentConfig, config: ExperimentConfig) -> None:
    """Check the run that a config goes on from, which it has named in another way than by its model."""
    named, model = asked.resume_from, config.resume_from
    assert named is not None and model is not None
    is_experiment = not is_folder(named)
    if is_experiment:
        earlier, own = (_data_of(one) for one in (_read(named), config))
        if earlier != own:
            raise ConfigError(f"{named}: trains on {earlier}, but this run on {own}. If that is meant, name {model}")
    # A run that has trained already needs no earlier one.
    if not is_there(model) and not is_there(_best_model(named, config)):
        advice = f"Train it first: handclip train {named}" if is_experiment else "It may have been moved"
        raise ConfigError(f"{named}: the model of this run, {model}, is not there. {advice}")


def _data_of(config: DataConfig) -> str:
    place = config.manifest or config.data_root
    return f"{config.dataset} {config.aspect}" + (f" ({place})" if config.dataset == "folder" else "")


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return load_yaml(text)
    except RecursionError:
        raise ConfigError(f"{source}: is nested too deeply") from None
    except Exception as error:  # on values such as `!!int 010` PyYAML lets Python's own errors through
        reason = " ".join(str(error).split()).replace(' in "<unicode string>",', ",")
        raise ConfigError(f"{source}: is not YAML that can be read: {cut(reason, 500)}") from error


def apply_override(override: str, values: dict[str, Any]) -> None:
    """Set one key of a file's values, in place.

    Args:
        override: `key=value` with the value in YAML; dots reach into sections.
        values: what the file holds.

    Raises:
        ConfigError: it is no such thing, or what it reaches into is no section.
    """
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {cut(override)}: should be key=value, such as --set aspect=palmar_l")
    value = _parse_yaml(text, source=f"--set {cut(override)}")
    *sections, last = key.strip().split(".")
    target = values
    for section in sections:
        inner = target.get(section) or {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {cut(override)}: '{section}' is not a section; give the whole of {section}=...")
        target[section] = inner = dict(inner)
        target = inner
    target[last] = value
