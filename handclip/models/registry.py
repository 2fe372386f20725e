"""Every image encoder by name: which families there are, what of a config each reads, and how it is built."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from handclip.config.experiment import INPUT_KEYS, ExperimentConfig
from handclip.datasets.transforms import Preprocessing
from handclip.errors import ConfigError, did_you_mean
from handclip.models.checkpoint import Checkpoint
from handclip.models.clip_encoder import CLIPImageEncoder, clip_model_names
from handclip.models.clip_weights import is_published_clip, load_clip_weights
from handclip.models.encoder import EncoderWeights, ImageEncoder
from handclip.models.mbanet import MBANETS, MBANetEncoder
from handclip.models.resnet import RESNETS, ResNetEncoder
from handclip.models.resnet_weights import is_published_resnet, load_resnet_weights


@dataclass(frozen=True)
class EncoderFamily:
    """Encoders that are built alike."""

    key: str
    """Its short name in records."""
    title: str
    names: Callable[[], Collection[str]]
    encoder: Callable[..., ImageEncoder]
    """Takes name and weights, and by keyword `input_size` and `built_with`."""
    built_with: tuple[str, ...]
    """Keys of the config that its encoders are built with."""
    load_weights: Callable[[ExperimentConfig], EncoderWeights]
    weights_read: tuple[str, ...]
    """Keys of the config that only its weights are read with."""
    publishes: Callable[[str, str], bool]
    """Whether weights of a model, as the config names both, are published ones; else they are a file."""

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the config that only some families read, and this one does."""
        return frozenset(self.built_with + self.weights_read)


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
    family = family_of(config.model)
    own = {key: getattr(config, key) for key in family.built_with}
    return family.encoder(config.model, family.load_weights(config), input_size=config.input_height_width, **own)


def rebuild_encoder(checkpoint: Checkpoint) -> ImageEncoder:
    """Build the encoder of a checkpoint; its weights are still to be loaded."""
    model, facts = checkpoint.config["model"], checkpoint.encoder_facts
    trained = Preprocessing.from_dict(checkpoint.preprocessing)
    family = family_of(model)
    own = {key: checkpoint.config[key] for key in family.built_with}
    preprocessing = {name: getattr(trained, name) for name in INPUT_KEYS}
    weights = EncoderWeights(None, str(facts["weights"]), preprocessing, facts.get("quick_gelu"))
    return family.encoder(model, weights, input_size=(trained.height, trained.width), **own)


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


def _load_clip(config: ExperimentConfig) -> EncoderWeights:
    return load_clip_weights(
        config.model,
        config.pretrained,
        config.quick_gelu,
        tag=config.pretrained_tag,
        preprocessing=config.preprocessing,
    )


def _load_resnet(config: ExperimentConfig) -> EncoderWeights:
    return load_resnet_weights(config.model, config.pretrained, preprocessing=config.preprocessing)


FAMILIES = (
    EncoderFamily(
        key="clip",
        title="CLIP's models",
        names=clip_model_names,
        encoder=CLIPImageEncoder,
        built_with=("embedding",),
        load_weights=_load_clip,
        weights_read=("pretrained_tag", "quick_gelu"),
        publishes=is_published_clip,
    ),
    EncoderFamily(
        key="mbanet",
        title="MBA-Nets",
        names=lambda: MBANETS,
        encoder=MBANetEncoder,
        built_with=("relative_position",),
        load_weights=_load_resnet,
        weights_read=(),
        publishes=is_published_resnet,
    ),
    EncoderFamily(
        key="resnet",
        title="ResNets",
        names=lambda: RESNETS,
        encoder=ResNetEncoder,
        built_with=(),
        load_weights=_load_resnet,
        weights_read=(),
        publishes=is_published_resnet,
    ),
)
