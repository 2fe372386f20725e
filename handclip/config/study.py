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
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import apply_override, parse_config, read_yaml
from handclip.config.naming import run_name
from handclip.config.section import Section
from handclip.errors import ConfigError, did_you_mean

Keys = dict[str, Any]
"""Keys and values of an experiment file."""

_WRITTEN = {"output_dir": "train_logs", "save_dir": "saved_models", "eval_dir": "eval_logs"}
"""Where runs write, below the study's folder."""

SYNTHETIC_HANDS = "synthetic_hands"
"""Where a study draws its synthetic hands, below its folder."""


class SyntheticSection(Section):
    """Hands to draw for `dataset: synthetic`."""

    identities: int = Field(60, ge=4)
    images_per_aspect: int = Field(6, ge=2)
    size: int = Field(160, ge=32)
    """Width and height in pixels."""
    seed: int = Field(0, ge=0)


class StudyConfig(Section):
    """A study file, before its experiments are spelled out."""

    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    models: dict[str, Keys] = Field(min_length=1)
    """Keys of each model's experiments. `losses` here names those of the study that this model is trained with."""
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
    runs: list[Path] = Field(default_factory=list)
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
        for model, keys in self.models.items():
            names = keys.get("losses", list(self.losses))
            if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
                raise ValueError(f"models.{model}.losses: should list names of the study's losses, such as [ce]")
            for name in names:
                if name not in self.losses:
                    raise ValueError(f"models.{model}.losses: there is no '{name}'.{did_you_mean(name, self.losses)}")
        return self


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a study file.

    Args:
        path: the YAML file.
        overrides: `key=value` with the value in YAML; `stage1.epochs=3` reaches into a section.

    Raises:
        ConfigError: the file is missing or is no YAML mapping, a key is unknown, or a value has the wrong type.
    """
    values = read_yaml(path)
    for override in overrides:
        apply_override(override, values)
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in _explain(error))) from error


def plan_experiments(
    study: StudyConfig, out: Path, *, only: Sequence[str] = (), source: str = "study"
) -> list[ExperimentConfig]:
    """Spell out every experiment of a study, each after the one it goes on from.

    Args:
        study: the study.
        out: its folder, below which everything is written.
        only: models to plan; default all. Experiment files under `runs` are left out where it is given.
        source: named in errors.

    Raises:
        ConfigError: a key or value of an experiment is wrong, `only` names an unknown model, or two experiments
            would have the same name.
    """
    if unknown := sorted(set(only) - study.models.keys()):
        raise ConfigError(f"the study has no model '{unknown[0]}'.{did_you_mean(unknown[0], study.models)}")
    planned = list(_experiments(study, out, only, source))
    names: dict[str, ExperimentConfig] = {}
    for config in planned:
        if names.setdefault(run_name(config), config) is not config:
            raise ConfigError(f"{source}: two experiments would both be named {run_name(config)}")
    return planned


def plan_cross_domain(study: StudyConfig, config: ExperimentConfig, source: str = "study") -> list[ExperimentConfig]:
    """Return the evaluations of a trained experiment on the study's other data, without those it was trained on."""
    if config.variant == "baseline":
        return []
    planned = []
    for data in _single_aspects(study.evaluate_on):
        same = data.get("dataset", config.dataset) == config.dataset
        elsewhere = {} if same else {"data_root": None, "manifest": None}
        values = {**_given(config), **elsewhere, **data, "checkpoint": _checkpoint(config)}
        other = parse_config(values, f"{source}, evaluate_on")
        if (other.dataset, other.aspect, other.manifest) != (config.dataset, config.aspect, config.manifest):
            planned.append(other)
    return planned


def _experiments(study: StudyConfig, out: Path, only: Sequence[str], source: str) -> Iterator[ExperimentConfig]:
    places: Keys = {key: str(out / folder) for key, folder in _WRITTEN.items()}
    for data in _single_aspects(study.data):
        if str(data.get("dataset", study.common.get("dataset"))).lower() == "synthetic":
            data = {"data_root": str(out / SYNTHETIC_HANDS), **data}
        for seed in study.seeds:
            for name, model in study.models.items():
                if only and name not in only:
                    continue
                given = {"model": name, "seed": seed, **data, **places}
                yield from _stages(study, {k: v for k, v in model.items() if k != "losses"}, given, source)
            for path in () if only else study.runs:
                yield parse_config({**read_yaml(path), "seed": seed, **data, **places}, str(path))


def _stages(study: StudyConfig, model: Keys, given: Keys, source: str) -> Iterator[ExperimentConfig]:
    """Yield one model's experiments on one data set with one seed."""

    def config(stage: str, keys: Keys, **more: Any) -> ExperimentConfig:
        values = {**study.common, **keys, **model, **given, **more}
        return parse_config(values, f"{source}, {stage} of {given['model']}")

    if study.stage0 is not None:
        unused = ExperimentConfig.TRAINING
        without_training = [{k: v for k, v in part.items() if k not in unused} for part in (study.common, model)]
        values = {**without_training[0], **study.stage0, **without_training[1], **given, "variant": "baseline"}
        yield parse_config(values, f"{source}, stage0 of {given['model']}")
    if study.stage1 is None:
        return
    names = study.models[given["model"]].get("losses", study.losses)
    if study.stage2 is None:
        for name in names:
            yield config("stage1", study.stage1, losses=study.losses[name])
        return
    stage1 = config("stage1", study.stage1)
    yield stage1
    for name in names:
        # What training starts from is stage 1; what the model was pre-trained on stands in its config.
        yield config("stage2", study.stage2, losses=study.losses[name], resume_from=_checkpoint(stage1))


def _checkpoint(config: ExperimentConfig) -> str:
    return str(config.save_dir / f"{run_name(config)}.pth")


def _single_aspects(data: Sequence[Keys]) -> Iterator[Keys]:
    for keys in data:
        rest = {key: value for key, value in keys.items() if key != "aspects"}
        aspects = keys.get("aspects")
        if not isinstance(aspects, list | None):
            raise ConfigError(f"data: aspects: should be a list, such as [dorsal_r, palmar_r] (got {aspects!r})")
        yield from [rest] if aspects is None else ({**rest, "aspect": aspect} for aspect in aspects)


def _given(config: ExperimentConfig) -> Keys:
    """Return the keys that are not at their default, so that validation takes them for what was written."""
    return {key: value for key, value in config.to_dict().items() if key in config.model_fields_set}


def _explain(error: ValidationError) -> Iterator[str]:
    for finding in error.errors(include_url=False):
        where = ".".join(str(part) for part in finding["loc"])
        if finding["type"] == "extra_forbidden":
            section: type[Section] = SyntheticSection if finding["loc"][0] == "synthetic" else StudyConfig
            yield f"unknown key '{where}'.{did_you_mean(str(finding['loc'][-1]), section.model_fields)}"
        elif finding["type"] == "missing":
            yield f"{where}: is required"
        elif finding["type"] == "value_error":
            yield ": ".join(filter(None, [where, str(finding["ctx"]["error"])]))
        else:
            yield f"{where}: {finding['msg'][:1].lower()}{finding['msg'][1:].replace('dictionary', 'mapping')}"
