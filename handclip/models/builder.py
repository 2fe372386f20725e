"""From a config, or from a checkpoint, to a model."""

from handclip.config.experiment import ExperimentConfig
from handclip.errors import CheckpointError, ConfigError, missing_file
from handclip.files import is_there
from handclip.models.checkpoint import Checkpoint, check_same_model
from handclip.models.embedding_model import EmbeddingModel
from handclip.models.encoder import freeze_encoder
from handclip.models.registry import build_encoder, check_keys, rebuild_encoder
from handclip.models.state_dict import load_checked


def build_model(config: ExperimentConfig, earlier: Checkpoint | None = None) -> EmbeddingModel:
    """Build the model that training starts from, in training mode, or that a baseline evaluates, in evaluation mode.

    Args:
        config: the experiment.
        earlier: the checkpoint of `resume_from`, where `load_earlier_stage` has read it already. It replaces
            `pretrained`.

    Raises:
        ConfigError: unknown model, weights, input size or number of blocks, or a key that the model does not read.
        CheckpointError: weights, or the checkpoint of `resume_from`, are missing, damaged or of another model.
    """
    check_keys(config)
    earlier = earlier or load_earlier_stage(config)
    encoder = rebuild_encoder(earlier) if earlier is not None else build_encoder(config)
    model = EmbeddingModel(encoder, neck=config.neck, test_feature=config.test_feature)
    if earlier is not None:
        # A neck that only one of the two stages has starts afresh, or is left behind.
        fresh = {key: value for key, value in model.state_dict().items() if key.startswith("necks.")}
        taken = {k: v for k, v in earlier.model_state.items() if k in fresh or not k.startswith("necks.")}
        load_checked(model, {**fresh, **taken}, f"resume_from: {config.resume_from}")
    freeze_encoder(model.encoder, config.freeze)
    return model.train(config.variant == "finetuned")


def load_earlier_stage(config: ExperimentConfig) -> Checkpoint | None:
    """Read the checkpoint of `resume_from`, if there is one, and check that it is of the same model.

    Raises:
        ConfigError: it is not there.
        CheckpointError: it is damaged, or of another model or preprocessing.
    """
    if config.resume_from is None:
        return None
    if not is_there(config.resume_from):
        missing = missing_file(config.resume_from, "*.pth", key="resume_from")
        raise ConfigError(f"{missing} Train the stage that it names first")
    try:
        checkpoint = Checkpoint.load(config.resume_from)
        check_same_model(checkpoint, config.to_dict(), config.resume_from, same_neck=False)
    except CheckpointError as error:
        raise CheckpointError(f"resume_from: {error}") from error
    return checkpoint


def model_from_checkpoint(checkpoint: Checkpoint, source: str, test_feature: str | None = None) -> EmbeddingModel:
    """Rebuild a trained model from its file alone, in evaluation mode.

    Args:
        checkpoint: what the file holds.
        source: names the file in errors.
        test_feature: `auto`, `after_neck` or `before_neck`, default as it was trained with.

    Raises:
        CheckpointError: the weights do not belong to the model that the file describes.
    """
    config = checkpoint.config
    model = EmbeddingModel(
        rebuild_encoder(checkpoint), neck=config["neck"], test_feature=test_feature or config["test_feature"]
    )
    if model.encoder.embedding_dims != checkpoint.embedding_dims:
        raise CheckpointError(
            f"{source}: holds embeddings {checkpoint.embedding_dims}, but {config['model']} has "
            f"{model.encoder.embedding_dims}"
        )
    load_checked(model, checkpoint.model_state, source)
    return model.eval()
