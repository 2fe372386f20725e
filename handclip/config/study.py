"""The study file: models x data x losses x seeds, and the experiments that follow from it.

```yaml
study: loss_variants
models:
  vitb16: {pretrained: openai}
  mbanet: {pretrained: tv2_in1k, neck: hidden}
data:
  - {dataset: 11k, aspects: [dorsal_r, palmar_r]}
  - {dataset: hd}
seeds: [0, 1]
losses:
  ce: [{type: cross_entropy}]
  ce_triplet: [{type: cross_entropy}, {type: triplet}]
common: {batch_size: 32}
stage0: {experiment: stage0_baseline}
stage1: {experiment: stage1, epochs: 30}
stage2: {experiment: stage2_loss_variants, epochs: 30}
```

Every other key is one of the experiment file's. Of two places that give the same key, the later in this order holds:
`common`, the stage, the model, the data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from handclip.config.experiment import DataConfig, ExperimentConfig, TrainingConfig
from handclip.config.loading import apply_override, on_other_data, parse_config, read_yaml
from handclip.config.mistakes import cut, explained, unknown_key
from handclip.config.naming import run_name
from handclip.config.section import ConfigSection, HomePath
from handclip.errors import ConfigError, did_you_mean

Keys = dict[str, Any]
"""Keys and values of an experiment file."""

_WRITTEN = {"output_dir": "train_logs", "save_dir": "saved_models", "eval_dir": "eval_logs"}
"""Where runs write, below the study's folder."""

_OWNED = {
    **dict.fromkeys(_WRITTEN, "everything is written below the study's folder"),
    **dict.fromkeys(("resume_from", "checkpoint"), "the study knows which model goes on from which"),
    "seed": "seeds stand in the study's `seeds`",
    "model": "models stand in the study's `models`",
    "variant": "stage0 is the baseline, stage1 and stage2 train",
}
"""Keys of the experiment file that the study sets itself, and where they are said instead."""

SYNTHETIC_HANDS = "synthetic_hands"
"""Where a study draws its synthetic hands, below its folder."""


MAX_EXPERIMENTS = 10_000
"""Of a study, evaluations on other data included."""


class SyntheticSection(ConfigSection):
    """Hands to draw for `dataset: synthetic`."""

    identities: int = Field(60, ge=4)
    images_per_aspect: int = Field(6, ge=2)
    size: int = Field(160, ge=32)
    """Width and height in pixels."""
    seed: int = Field(0, ge=0)


class StudyConfig(ConfigSection):
    """A study file, before its experiments are spelled out."""

    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    models: dict[str, Keys] = Field(min_length=1)
    """Keys of each model's experiments. `losses` here names those of the study that it is trained with; with `model`,
    the name is only a label."""
    data: Annotated[list[Keys], Field(min_length=1)]
    """Keys of each data set; `aspects` is a list, one experiment each."""
    seeds: list[Annotated[int, Field(strict=True, ge=0, lt=2**32)]] = Field(default_factory=lambda: [0], min_length=1)
    losses: dict[str, list[Keys]] = Field(default_factory=lambda: {"ce": [{"type": "cross_entropy"}]}, min_length=1)
    """Name of each combination and its losses: the variants of the last stage."""
    common: Keys = Field(default_factory=dict)
    stage0: Keys | None = None
    """Evaluates the models as they are."""
    stage1: Keys | None = None
    """Trains from pre-trained weights, with cross-entropy; with each of `losses` where there is no stage 2."""
    stage2: Keys | None = None
    """Goes on from stage 1 with each of `losses`."""
    runs: list[HomePath] = Field(default_factory=list)
    """Whole experiment files that belong to the study; they are run on all of `data`, with all of `seeds`."""
    evaluate_on: list[Keys] = Field(default_factory=list)
    """Other data that every trained model is evaluated on (cross-domain)."""
    synthetic: SyntheticSection = SyntheticSection()

    @field_validator("models", mode="before")
    @classmethod
    def _nothing_to_say(cls, models: Any) -> Any:
        """Let a model stand alone on its line (`vitb16:`)."""
        return {name: keys or {} for name, keys in models.items()} if isinstance(models, dict) else models

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.stage0 is None and self.stage1 is None and not self.runs:
            raise ValueError("there is nothing to run: name stage0, stage1 (and stage2), or runs")
        if self.stage2 is not None and self.stage1 is None:
            raise ValueError("stage2: goes on from stage 1, and there is no stage1")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: names a seed twice")
        self._leave_to_the_study()
        for model, keys in self.models.items():
            names = keys.get("losses", list(self.losses))
            if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
                raise ValueError(f"models.{model}.losses: should list names of the study's losses, such as [ce]")
            for name in names:
                if name not in self.losses:
                    raise ValueError(f"models.{model}.losses: there is no '{name}'.{did_you_mean(name, self.losses)}")
        return self

    def _leave_to_the_study(self) -> None:
        """Refuse keys that no experiment has, and those that would have no effect where they stand."""
        parts: dict[str, Keys | None] = {key: getattr(self, key) for key in ("common", "stage0", "stage1", "stage2")}
        parts |= {f"models.{name}": keys for name, keys in self.models.items()}
        parts |= {f"data[{number}]": keys for number, keys in enumerate(self.data)}
        parts |= {f"evaluate_on[{number}]": keys for number, keys in enumerate(self.evaluate_on)}
        for where, keys in parts.items():
            also = ["aspects"] if where.startswith(("data[", "evaluate_on[")) else []
            for key in keys or ():
                if key not in ExperimentConfig.model_fields and key not in also:
                    raise ValueError(f"{where}.{cut(key)}: {unknown_key(key, also)}")
                # A model may stand under a name of its own, so that one is trained in two ways.
                if key in _OWNED and not (key == "model" and where.startswith("models.")):
                    raise ValueError(f"{where}.{key}: is the study's to set: {_OWNED[key]}")
                if key == "losses" and where != "stage1" and not where.startswith("models."):
                    raise ValueError(f"{where}.losses: combinations stand in the study's `losses`")
        if self.stage2 is None and "losses" in (self.stage1 or {}):
            raise ValueError("stage1.losses: without stage2, stage 1 is trained with each of the study's `losses`")


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study file.

    Args:
        path: the YAML file.
        overrides: `key=value` with the value in YAML; `stage1.epochs=3` reaches into a section.

    Raises:
        ConfigError: the file is missing, too large or is no YAML mapping, a key is unknown, or a value has the wrong
            type.
    """
    values = read_yaml(path)
    for override in overrides:
        apply_override(override, values)
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise explained(error, StudyConfig, str(path), overrides) from error


@dataclass(frozen=True)
class StudyExperiment:
    """One experiment of a study, and its evaluations on data that it is not trained on."""

    config: ExperimentConfig
    other_data: tuple[ExperimentConfig, ...] = ()
    label: str = ""
    """The study's name of the model; empty for an experiment file."""


def plan_experiments(
    study: StudyConfig, out: Path, *, only: Sequence[str] = (), source: str = "study"
) -> list[StudyExperiment]:
    """Spell out every experiment of a study, each after the one it goes on from.

    Args:
        study: the study.
        out: its folder, below which everything is written.
        only: models to plan; default all. Experiment files under `runs` are left out where it is given.
        source: named in errors.

    Raises:
        ConfigError: a key or value of an experiment is wrong, `only` names an unknown model, or two experiments or
            evaluations would have the same name.
    """
    if unknown := sorted(set(only) - study.models.keys()):
        raise ConfigError(f"{source}: there is no model '{unknown[0]}'.{did_you_mean(unknown[0], study.models)}")
    planned: dict[str, StudyExperiment] = {}
    evaluations = 0
    for label, config, values, where in _experiments(study, out, only, source):
        if (name := run_name(config)) in planned:
            raise ConfigError(f"{source}: two experiments would both be named {name}")
        planned[name] = StudyExperiment(config, tuple(_on_other_data(study, config, values, out, where)), label)
        evaluations += 1 + len(planned[name].other_data)
        if evaluations > MAX_EXPERIMENTS:
            raise ConfigError(f"{source}: is more than {MAX_EXPERIMENTS:,} experiments; divide it into several studies")
    return list(planned.values())


_Spelled = tuple[str, ExperimentConfig, Keys, str]
"""The label of its model, an experiment, the values it was made from, and where they stand."""


def _experiments(study: StudyConfig, out: Path, only: Sequence[str], source: str) -> Iterator[_Spelled]:
    places: Keys = {key: str(out / folder) for key, folder in _WRITTEN.items()}
    for data in _single_aspects(study.data, study, out, f"{source}, data"):
        for seed in study.seeds:
            for label, model in study.models.items():
                if only and label not in only:
                    continue
                own = {key: value for key, value in model.items() if key != "losses"}
                given = {"seed": seed, **data, **places}
                yield from _stages(study, label, {"model": label, **own}, given, source)
            for path in () if only else study.runs:
                values = {**on_other_data(read_yaml(path), data), "seed": seed, **places}
                yield "", parse_config(values, str(path)), values, str(path)


def _stages(study: StudyConfig, label: str, model: Keys, given: Keys, source: str) -> Iterator[_Spelled]:
    """Yield one model's experiments on one data set with one seed."""

    def spelled(stage: str, *parts: Keys) -> _Spelled:
        where = f"{source}, {stage} of {label}"
        values = {key: value for part in (study.common, *parts) for key, value in part.items()}
        if values.get("variant") == "baseline":
            unread = TrainingConfig.model_fields.keys() - (study.stage0 or {}).keys()
            values = {key: value for key, value in values.items() if key not in unread}
        return label, parse_config(values, where), values, where

    if study.stage0 is not None:
        baseline = spelled("stage0", study.stage0, model, given, {"variant": "baseline"})
        # With weights from a file or the hub, every seed has the same baseline.
        if given["seed"] == study.seeds[0] or baseline[1].pretrained == "none":
            yield baseline
    if study.stage1 is None:
        return
    names = study.models[label].get("losses", list(study.losses))
    if study.stage2 is None:
        for name in names:
            yield spelled("stage1", study.stage1, model, given, {"losses": study.losses[name]})
        return
    stage1 = spelled("stage1", study.stage1, model, given)
    yield stage1
    for name in names:
        own = {"losses": study.losses[name], "resume_from": _checkpoint(stage1[1])}
        yield spelled("stage2", study.stage2, model, given, own)


def _on_other_data(
    study: StudyConfig, config: ExperimentConfig, values: Keys, out: Path, where: str
) -> Iterator[ExperimentConfig]:
    """Yield a trained experiment's evaluations on the study's other data, without those it was trained on."""
    if config.variant == "baseline":
        return
    seen = [_data_of(config)]
    for number, data in enumerate(_single_aspects(study.evaluate_on, study, out, f"{where}, evaluate_on")):
        changed = {**on_other_data(values, data), "checkpoint": _checkpoint(config)}
        other = parse_config(changed, f"{where}, evaluate_on")
        if _data_of(other) in seen[1:]:
            raise ConfigError(f"{where}, evaluate_on: entry {number + 1} names the same data as one before it")
        if _data_of(other) != seen[0]:
            seen.append(_data_of(other))
            yield other


def _data_of(config: DataConfig) -> tuple[str, ...]:
    return config.dataset, config.aspect, str(config.manifest), str(config.data_root), str(config.pattern)


def _checkpoint(config: ExperimentConfig) -> str:
    return str(config.save_dir / f"{run_name(config)}.pth")


def _single_aspects(entries: Sequence[Keys], study: StudyConfig, out: Path, where: str) -> Iterator[Keys]:
    """Yield the entries of a list of data with one aspect each; synthetic hands lie below the study's folder."""
    for entry in entries:
        rest = {key: value for key, value in entry.items() if key != "aspects"}
        if str(entry.get("dataset", study.common.get("dataset"))).lower() == "synthetic":
            rest = {"data_root": str(out / SYNTHETIC_HANDS), **rest}
        aspects = entry.get("aspects")
        if aspects is None:
            yield rest
            continue
        if not isinstance(aspects, list) or not aspects or "aspect" in entry:
            said = "should be a list, such as [dorsal_r, palmar_r], and stand without `aspect`"
            raise ConfigError(f"{where}: aspects: {said} (got {aspects!r})")
        yield from ({**rest, "aspect": aspect} for aspect in aspects)
