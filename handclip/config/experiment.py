"""`ExperimentConfig`: everything an experiment file may say, with types, defaults, and why they are what they are."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from handclip.config.losses import CrossEntropyConfig, LossConfig
from handclip.config.path_pattern import PathPattern
from handclip.config.section import ConfigSection, HomePath
from handclip.errors import nearest
from handclip.files import at_home

HAND_ASPECTS = ("dorsal_r", "dorsal_l", "palmar_r", "palmar_l")
"""The four aspects of an 11k Hands layout, in the order of the protocol's tables."""

SINGLE_ASPECT = {"hd": "dorsal", "folder": "hand"}
"""Data sets with one aspect only, and its name."""


def aspects_of(dataset: str) -> tuple[str, ...]:
    """Return what `aspect` may be for a data set."""
    return (SINGLE_ASPECT[dataset],) if dataset in SINGLE_ASPECT else (*HAND_ASPECTS, "all")


GalleryProtocol = Literal["gallery", "gallery_all"]
Flip = Literal["none", "sum"]

PositiveInt = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(gt=0, le=1)]

InputMean = tuple[Probability, Probability, Probability]
InputStd = tuple[_Deviation, _Deviation, _Deviation]
Interpolation = Literal["bicubic", "bilinear"]
ResizeMode = Literal["squash", "shortest", "longest"]


T = TypeVar("T")


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _none(value: Any) -> Any:
    return None if value == "none" else value


def _not_empty(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("the list is empty; name at least one")
    return values


def _fill_in(path: Path, info: ValidationInfo) -> Path:
    """Replace {model}, {dataset} and {aspect} in a path, so that one config serves every aspect."""
    text = str(path)
    for key in ("model", "dataset", "aspect"):
        text = text.replace(f"{{{key}}}", info.data.get(key, ""))
    if "{" in text:
        raise ValueError(f"{path}: a path may hold {{model}}, {{dataset}} and {{aspect}}, nothing else in braces")
    return Path(text)


def _checked_pattern(pattern: str) -> str:
    PathPattern(pattern)
    return pattern


FilledPath = Annotated[HomePath, AfterValidator(_fill_in)]
NotEmpty = Annotated[tuple[T, ...], AfterValidator(_not_empty)]


class Augmentation(ConfigSection):
    """Random changes to training images. The default is none: each is a choice to be reported."""

    resize_crop: float = Field(1.0, ge=1, le=2)
    """Resize to this multiple of the input size, then crop the input size at random (256 -> 224 is 1.143)."""
    flip: Probability = 0.0
    """Mirror with this probability. A mirrored right hand looks like a left one."""
    rotation: float = Field(0.0, ge=0, le=180)
    """Rotate by up to this many degrees either way; uncovered corners get the normalisation mean."""
    scale: float = Field(0.0, ge=0, lt=1)
    """Zoom by a factor from 1 - scale to 1 + scale."""
    color_jitter: float = Field(0.0, ge=0, le=1)
    """Change brightness, contrast and saturation by a factor from 1 - color_jitter to 1 + color_jitter."""
    erasing: Probability = 0.0
    """Erase a random rectangle (2 to 40 % of the area, filled with the normalisation mean) with this probability."""


class Reranking(ConfigSection):
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017), with the paper's parameters."""

    k1: PositiveInt = 20
    """Neighbours whose agreement is compared."""
    k2: PositiveInt = 6
    """Nearest images, the image itself among them, whose neighbours are averaged."""
    lambda_: Probability = Field(0.3, alias="lambda")
    """Share of the original distance in the final one."""


class RunConfig(ConfigSection):
    """What is run."""

    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    variant: Literal["baseline", "finetuned"] = "finetuned"
    """`baseline` evaluates the pre-trained encoder as it is; `finetuned` trains."""
    seed: int = Field(0, ge=0, lt=2**32)


INPUT_KEYS = {"mean": "input_mean", "std": "input_std", "interpolation": "interpolation", "resize_mode": "resize_mode"}
"""Keys that say how photographs become input, by the names of `Preprocessing`."""


class ModelConfig(ConfigSection):
    """The model, and how photographs become its input."""

    model: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    pretrained: Annotated[str, AfterValidator(at_home)] = "openai"
    """A tag of open_clip (CLIP) or timm (CNNs), a local weights file, or `none`. No tag begins with `~`."""
    pretrained_tag: str | None = None
    """The tag of open_clip that a weights file holds, or was trained from: it tells what a file does not."""
    quick_gelu: bool | Literal["auto"] = "auto"
    """`auto` takes the activation the weights were trained with."""
    input_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Pixels: one number for a square, or [height, width]; default the model's own."""
    input_mean: InputMean | None = None
    """Subtracted from red, green and blue, as values from 0 to 1; default what the weights were trained with."""
    input_std: InputStd | None = None
    """What red, green and blue are then divided by."""
    interpolation: Interpolation | None = None
    """How photographs are resized; default what the weights were trained with (CLIP), or bicubic."""
    resize_mode: ResizeMode | None = None
    """Photographs of another shape: `squash` (default) changes their aspect ratio, `shortest` cuts off their ends,
    `longest` fills up with black."""
    embedding: Literal["projected", "before_projection", "both"] = "projected"
    relative_position: Literal["published", "intended"] = "published"
    """Reading of the relative position encoding in MBA-Net's spatial attention: as coded, or as described."""

    @property
    def input_height_width(self) -> tuple[int, int] | None:
        """`input_size` as (height, width) in pixels."""
        return (self.input_size, self.input_size) if isinstance(self.input_size, int) else self.input_size

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What the file itself says of the input, by the names of `Preprocessing`."""
        said = {name: getattr(self, key) for name, key in INPUT_KEYS.items()}
        return {name: value for name, value in said.items() if value is not None}


class DataConfig(ConfigSection):
    """Which images are used."""

    dataset: Annotated[Literal["11k", "hd", "synthetic", "folder"], BeforeValidator(_lower)]
    aspect: Literal["dorsal_r", "dorsal_l", "palmar_r", "palmar_l", "all", "dorsal", "hand"] = "dorsal_r"
    """`all` trains the four aspects together, each (person, aspect) an identity, and evaluates each by itself."""
    data_root: FilledPath | None = None
    """Folder of the data set; default `datasets/11k`, `datasets/HD`, `datasets/synthetic`.

    This and every other path may hold {model}, {dataset} and {aspect}.
    """
    manifest: FilledPath | None = None
    """A manifest file, or a folder of them, made by `handclip prepare`."""
    pattern: Annotated[str, AfterValidator(_checked_pattern)] | None = None
    """Says whose each photograph of a `folder` is by its path, as `{identity}/{session}/*` does; see `PathPattern`."""
    allow_missing: bool = False
    """Prepare the data set although some of its images are absent (they are counted and reported)."""

    @property
    def aspects(self) -> tuple[str, ...]:
        """The aspects the run covers."""
        return HAND_ASPECTS if self.aspect == "all" else (self.aspect,)

    @model_validator(mode="before")
    @classmethod
    def _name_the_only_aspect(cls, values: Any) -> Any:
        """Where a data set has one aspect only, it need not be given."""
        if isinstance(values, dict) and "aspect" not in values:
            only = SINGLE_ASPECT.get(str(values.get("dataset")).lower())
            if only is not None:
                return {**values, "aspect": only}
        return values

    @model_validator(mode="after")
    def _consistent_data(self) -> Self:
        if self.aspect not in (known := aspects_of(self.dataset)):
            names = f"aspects {', '.join(known[:-1])} and {known[-1]}" if known[1:] else f"aspect {known[0]} only"
            hint = nearest(self.aspect, known)
            raise ValueError(f"aspect: {self.dataset} has the {names}{'.' if hint else ''}{hint}")
        if self.dataset == "folder" and self.data_root is None and self.manifest is None:
            raise ValueError("data_root: a folder data set needs the path of its folder")
        if self.dataset != "folder" and self.pattern is not None:
            raise ValueError(f"pattern: is read only with dataset: folder; {self.dataset} has a layout of its own")
        return self


class TrainingConfig(ConfigSection):
    """What only training reads."""

    train_split: Literal["train", "train_all"] = "train"
    """`train_all` adds the validation images: nothing is left to select an epoch by, so the last one is kept."""

    freeze: str = Field("none", pattern=r"^(none|all|all_but_last_[1-9]\d*)$")
    """Part of the image encoder that does not train: `none`, `all`, or `all_but_last_2`, say."""
    resume_from: FilledPath | None = None
    """A `.pth` of an earlier stage whose encoder training goes on from; it takes the place of `pretrained`."""
    neck: Literal["none", "bnneck", "hidden"] = "none"
    """What stands between an embedding (metric losses) and its classifiers: nothing, a batch-norm layer
    (Luo et al. 2019), or a hidden layer (linear, batch norm, leaky ReLU, dropout), which is MBA-Net's head."""
    losses: NotEmpty[LossConfig] = (CrossEntropyConfig(),)
    epochs: PositiveInt = 30
    batch_size: int = Field(32, ge=2)
    sampler: Literal["auto", "random", "pk"] = "auto"
    """`auto` draws P identities x K images whenever a loss needs positives, and single images at random otherwise."""
    images_per_identity: int = Field(4, ge=2)
    """K of P x K; P is batch_size / K."""
    lr: float = Field(5e-5, gt=0, le=100)
    """Learning rate of new parameters (classifiers, neck, MBA-Net's attention)."""
    backbone_lr_scale: float = Field(0.1, ge=0, le=100)
    """The pre-trained encoder learns at lr times this."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup_epochs: float = Field(1.0, ge=0)
    """Linear, from 1 %; a run of one epoch warms up over half of it."""
    milestones: tuple[PositiveInt, ...] = (20, 25)
    """Epochs after which the `step` schedule multiplies the learning rate by gamma."""
    gamma: float = Field(0.1, gt=0, le=1)
    gradient_clip: float = Field(1.0, ge=0)
    """Largest norm of the gradient; 0 switches clipping off."""
    augmentation: Augmentation = Augmentation()
    monitor: Literal["val_map", "val_rank1"] = "val_map"
    """What selects the best epoch, measured on the validation images of training identities."""
    validation_interval: PositiveInt = 1
    """Epochs from one validation to the next; the last epoch is always validated."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many validations without a better `monitor`; default never."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """`auto` trains in bfloat16 where the hardware has it, else in float32; `tf32` rounds the inputs of an NVIDIA GPU's
    products to ten bits. Master weights and evaluation are always float32."""
    reduced_decoding: bool = True
    """Decode training photographs that are much larger than the input at a half, a quarter or an eighth of their size,
    which JPEG files allow and which is several times faster. Validation and evaluation decode in full."""

    @property
    def uses_pk_sampling(self) -> bool:
        """Whether batches are drawn as P identities x K images."""
        return self.sampler == "pk" or (self.sampler == "auto" and any(loss.needs_positives for loss in self.losses))

    @model_validator(mode="after")
    def _consistent_training(self) -> Self:
        if self.uses_pk_sampling and self.batch_size % self.images_per_identity:
            raise ValueError(
                f"batch_size: {self.batch_size} is not a multiple of images_per_identity ({self.images_per_identity}), "
                "as P x K sampling needs"
            )
        if self.uses_pk_sampling and self.batch_size < 2 * self.images_per_identity:
            raise ValueError(f"batch_size: {self.batch_size} holds one identity only; a positive needs a negative")
        if self.sampler == "random" and (needy := [loss.type for loss in self.losses if loss.needs_positives]):
            raise ValueError(f"sampler: random gives {needy[0]} no positives; use pk or auto")
        if self.schedule != "step" and (unused := sorted(self.changed & {"milestones", "gamma"})):
            raise ValueError(f"{unused[0]}: is read only with schedule: step")
        if self.schedule == "step" and list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones: must rise from one to the next")
        if self.warmup_epochs > self.epochs / 2 and "warmup_epochs" in self.changed:
            raise ValueError(f"warmup_epochs: {self.warmup_epochs:g} is more than half of the {self.epochs} epochs")
        if self.train_split == "train_all" and self.early_stopping_patience is not None:
            raise ValueError("early_stopping_patience: train_split: train_all leaves no validation images to stop by")
        if self.neck != "none" and not any(loss.uses_classifier for loss in self.losses):
            raise ValueError("neck: it feeds classifiers, and no loss here has one; add cross_entropy, say")
        return self


class EvaluationConfig(ConfigSection):
    """How a model is evaluated, which does not change the model."""

    checkpoint: FilledPath | None = None
    """The trained model to evaluate; default the run's own best in `save_dir`."""
    num_splits: int = Field(10, ge=1)
    """How many of the manifest's query/gallery draws to evaluate."""
    gallery_protocols: NotEmpty[GalleryProtocol] = ("gallery", "gallery_all")
    flip_settings: NotEmpty[Flip] = ("none", "sum")
    """`sum` adds the feature of the mirrored image before normalisation."""
    rerank: Annotated[Reranking | None, BeforeValidator(_none)] = None
    """Re-rank every number of this evaluation; `none` or a section, `{}` having the paper's parameters."""
    eval_batch_size: PositiveInt = 64
    explained_images: int = Field(4, ge=0, le=100)
    """Photographs of which the evaluation keeps a small copy with maps of where the model looks; 0 keeps none."""
    test_feature: Literal["auto", "after_neck", "before_neck"] = "auto"
    """What is compared; `auto` is `after_neck` for a BNNeck, `before_neck` for a hidden layer."""


class RuntimeConfig(ConfigSection):
    """Where and on what to run. What is computed does not depend on it."""

    output_dir: FilledPath = Path("train_logs")
    save_dir: FilledPath = Path("saved_models")
    eval_dir: FilledPath = Path("eval_logs")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    devices: PositiveInt | Literal["auto"] = 1
    """How many GPUs (or CPU processes) of each machine share the work; `auto` takes all GPUs. `batch_size` is that of
    all together, so that results do not depend on their number but for rounding."""
    num_nodes: PositiveInt = 1
    """Machines that share the work; each is started by `torchrun` or SLURM."""
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Processes that read images; results do not depend on their number."""
    pixel_cache_gib: float = Field(10.0, ge=0, allow_inf_nan=False)
    """Most GiB that the decoded images which all runs share may take on disk; 0 keeps none."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Order of numbers in the tensors of a training step; `auto` takes what is faster for the model and device."""
    compile: bool = False
    """Train an encoder compiled by torch.compile: a minute's wait for faster steps."""
    gradient_checkpointing: bool = False
    """ViTs: compute activations a second time in place of keeping them, which saves memory and costs time."""


class ExperimentConfig(RuntimeConfig, EvaluationConfig, TrainingConfig, DataConfig, ModelConfig, RunConfig):
    """One experiment: a model, its data, how it is trained, and how it is evaluated.

    An experiment is each of its parts, so that a function takes the part that it reads. Its keys stand in the order of
    the parts, of which pydantic takes the last first.

    Paths are relative to the working directory; `~` at the beginning of one is the home folder.
    """

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.variant == "baseline" and (unused := sorted(self.changed & TrainingConfig.model_fields.keys())):
            raise ValueError(f"{unused[0]}: has no effect with variant: baseline, which trains nothing")
        if self.neck == "none" and "test_feature" in self.changed:
            raise ValueError("test_feature: is read only with a neck: bnneck or hidden")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values of every key: the resolved config."""
        return self.model_dump(mode="json", by_alias=True)


RUNTIME_KEYS = frozenset({*RuntimeConfig.model_fields, "data_root", "allow_missing"})
"""Keys that say where and on what to run, and where the data lie."""

COMPUTED_KEYS = frozenset(ExperimentConfig.model_fields) - RUNTIME_KEYS - EvaluationConfig.model_fields.keys()
"""Keys from which, and from the manifest's hash, the model follows: two runs that differ in none train the same."""
