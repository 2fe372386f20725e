"""Every image encoder by name: which families there are, what of a config each reads, and how it is built."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from handclip.config.experiment import INPUT_KEYS, ExperimentConfig
from handclip.datasets.transforms import Preprocessing
from handclip.errors import ConfigError, did_you_mean
from handclip.models.checkpoint import Checkpoint
from handclip.models.clip_encoder import CLIPImageEncoder, clip_model_names
from handclip.models.clip_weights import ClipWeights, is_published_clip, load_clip_weights
from handclip.models.encoder import ImageEncoder
from handclip.models.mbanet import MBANETS, MBANetEncoder
from handclip.models.resnet import RESNETS, ResNetEncoder
from handclip.models.resnet_weights import ResNetWeights, is_published_resnet, load_resnet_weights


@dataclass(frozen=True)
class EncoderFamily:
    """Encoders that are built alike."""

    key: str
    """Its short name in records."""
    title: str
    names: Callable[[], Collection[str]]
    keys: frozenset[str]
    """Keys of the config that only some families read, and this one does."""
    publishes: Callable[[str, str], bool]
    """Whether weights of a model, as the config names both, are published ones; else they are a file."""
    from_config: Callable[[ExperimentConfig], ImageEncoder]
    """Builds the encoder with the weights that the config names."""
    from_checkpoint: Callable[[Checkpoint], ImageEncoder]
    """Builds the encoder of a checkpoint, whose weights are loaded afterwards."""


def model_names() -> list[str]:
    """Return the name of every encoder."""
    return [name for family in FAMILIES for name in family.names()]


def family_of(model: str) -> EncoderFamily:
    """Return the family that builds a model.

    Raises:
        ConfigError: there is no such model.
    """
    for family in FAMILIES:
        if model in family.names():
            return family
    raise ConfigError(f"model: there is no model '{model}'.{did_you_mean(model, model_names())}")


def build_encoder(config: ExperimentConfig) -> ImageEncoder:
    """Build the encoder that a config describes, with the weights that it names.

    Raises:
        ConfigError: there is no such model, weights or input size.
        CheckpointError: the weights are missing, damaged or of another model.
    """
    return family_of(config.model).from_config(config)


def rebuild_encoder(checkpoint: Checkpoint) -> ImageEncoder:
    """Build the encoder of a checkpoint; its weights are still to be loaded."""
    return family_of(checkpoint.config["model"]).from_checkpoint(checkpoint)


def check_keys(config: ExperimentConfig) -> None:
    """Check that every key that only some models read is read by this one, or left at its default.

    Raises:
        ConfigError: names a key that would have no effect, and the models that read it.
    """
    family = family_of(config.model)
    for key in sorted(frozenset().union(*(other.keys for other in FAMILIES)) - family.keys):
        if getattr(config, key) != ExperimentConfig.model_fields[key].default:
            readers = " and ".join(other.title for other in FAMILIES if key in other.keys)
            raise ConfigError(f"{key}: has no effect on {config.model}; only {readers} read it")


def _configured(config: ExperimentConfig, weights: ClipWeights | ResNetWeights) -> dict[str, Any]:
    return {
        "state_dict": weights.state_dict,
        "input_size": config.input_height_width,
        "source": weights.source,
        "preprocessing": weights.preprocessing,
    }


def _recorded(checkpoint: Checkpoint) -> dict[str, Any]:
    trained = Preprocessing.from_dict(checkpoint.preprocessing)
    return {
        "input_size": (trained.height, trained.width),
        "source": str(checkpoint.encoder_facts["weights"]),
        "preprocessing": {name: getattr(trained, name) for name in INPUT_KEYS},
    }


def _clip_from_config(config: ExperimentConfig) -> ImageEncoder:
    weights = load_clip_weights(
        config.model,
        config.pretrained,
        config.quick_gelu,
        tag=config.pretrained_tag,
        preprocessing=config.preprocessing,
    )
    return CLIPImageEncoder(
        config.model,
        quick_gelu=weights.quick_gelu,
        embedding=config.embedding,
        **_configured(config, weights),
    )


def _clip_from_checkpoint(checkpoint: Checkpoint) -> ImageEncoder:
    return CLIPImageEncoder(
        checkpoint.config["model"],
        quick_gelu=bool(checkpoint.encoder_facts["quick_gelu"]),
        embedding=checkpoint.config["embedding"],
        **_recorded(checkpoint),
    )


def _resnet_from_config(config: ExperimentConfig) -> ImageEncoder:
    weights = load_resnet_weights(config.model, config.pretrained, preprocessing=config.preprocessing)
    return ResNetEncoder(config.model, **_configured(config, weights))


def _resnet_from_checkpoint(checkpoint: Checkpoint) -> ImageEncoder:
    return ResNetEncoder(checkpoint.config["model"], **_recorded(checkpoint))


def _mbanet_from_config(config: ExperimentConfig) -> ImageEncoder:
    weights = load_resnet_weights(config.model, config.pretrained, preprocessing=config.preprocessing)
    return MBANetEncoder(config.model, relative_position=config.relative_position, **_configured(config, weights))


def _mbanet_from_checkpoint(checkpoint: Checkpoint) -> ImageEncoder:
    return MBANetEncoder(
        checkpoint.config["model"],
        relative_position=str(checkpoint.encoder_facts["relative_position"]),
        **_recorded(checkpoint),
    )


FAMILIES = (
    EncoderFamily(
        "clip",
        "CLIP's models",
        clip_model_names,
        frozenset({"pretrained_tag", "quick_gelu", "embedding"}),
        is_published_clip,
        _clip_from_config,
        _clip_from_checkpoint,
    ),
    EncoderFamily(
        "mbanet",
        "MBA-Nets",
        lambda: MBANETS,
        frozenset({"relative_position"}),
        is_published_resnet,
        _mbanet_from_config,
        _mbanet_from_checkpoint,
    ),
    EncoderFamily(
        "resnet",
        "ResNets",
        lambda: RESNETS,
        frozenset(),
        is_published_resnet,
        _resnet_from_config,
        _resnet_from_checkpoint,
    ),
)
