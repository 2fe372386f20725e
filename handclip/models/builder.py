"""From a config, or from a checkpoint, to a model."""

from pathlib import Path

from handclip.config.experiment import ExperimentConfig
from handclip.datasets.transforms import Preprocessing
from handclip.errors import CheckpointError
from handclip.models.checkpoint import Checkpoint, check_same_model
from handclip.models.clip_encoder import CLIPImageEncoder, architecture
from handclip.models.embedding_model import EmbeddingModel
from handclip.models.freezing import freeze_encoder
from handclip.models.state_dict import check_state_dict
from handclip.models.weights import load_clip_weights


def build_model(config: ExperimentConfig) -> EmbeddingModel:
    """Build the model that training starts from, or that a baseline evaluates.

    Raises:
        ConfigError: unknown model, weights, input size or number of blocks.
        CheckpointError: weights or the checkpoint of `resume_from` are missing, damaged or of another model.
    """
    if config.resume_from is not None:
        checkpoint = load_earlier_stage(config, config.resume_from)
        encoder = _encoder_of(checkpoint)
    else:
        architecture(config.model)
        weights = load_clip_weights(config.model, config.pretrained, config.quick_gelu)
        encoder = CLIPImageEncoder(
            config.model,
            state_dict=weights.state_dict,
            quick_gelu=weights.quick_gelu,
            input_size=config.input_height_width,
            embedding=config.embedding,
            source=weights.source,
            preprocessing=weights.preprocessing,
        )
    model = EmbeddingModel(encoder, bnneck=config.bnneck, test_feature=config.test_feature)
    if config.resume_from is not None:
        state = {
            key: value for key, value in checkpoint.model_state.items() if not key.startswith("necks.") or model.necks
        }
        state = {**{key: value for key, value in model.state_dict().items() if key.startswith("necks.")}, **state}
        check_state_dict(model, state, str(config.resume_from))
        model.load_state_dict(state)
    freeze_encoder(model.encoder, config.freeze)
    return model


def load_earlier_stage(config: ExperimentConfig, path: Path) -> Checkpoint:
    """Read the checkpoint of `resume_from` and check that it is of the same model."""
    try:
        checkpoint = Checkpoint.load(path)
    except CheckpointError as error:
        raise CheckpointError(f"resume_from: {error}") from error
    check_same_model(checkpoint, config.to_dict(), path)
    return checkpoint


def model_from_checkpoint(checkpoint: Checkpoint, source: str) -> EmbeddingModel:
    """Rebuild a trained model from its file alone."""
    config = checkpoint.config
    model = EmbeddingModel(_encoder_of(checkpoint), bnneck=config["bnneck"], test_feature=config["test_feature"])
    check_state_dict(model, checkpoint.model_state, source)
    model.load_state_dict(checkpoint.model_state)
    return model


def _encoder_of(checkpoint: Checkpoint) -> CLIPImageEncoder:
    trained = Preprocessing.from_dict(checkpoint.preprocessing)
    return CLIPImageEncoder(
        checkpoint.config["model"],
        quick_gelu=bool(checkpoint.encoder_facts["quick_gelu"]),
        input_size=(trained.height, trained.width),
        embedding=checkpoint.config["embedding"],
        source=str(checkpoint.encoder_facts["weights"]),
        preprocessing={"mean": trained.mean, "std": trained.std, "interpolation": trained.interpolation},
    )
