"""The `losses:` list of the experiment file: one small model per loss, told apart by `type`.

```yaml
losses:
  - type: cross_entropy
    label_smoothing: 0.1
  - type: triplet
    margin: 0.3
```
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, cast, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from handclip.config.section import ConfigSection
from handclip.errors import ConfigError, did_you_mean

SHORT_NAMES = {"ce": "cross_entropy"}
"""Other names that are accepted; what is resolved, recorded or part of a run's name is the long one."""

OTHER_NAMES = {"id": "cross_entropy", "softmax": "cross_entropy", "tri": "triplet"}
"""What people and file names call some losses; never accepted, only understood in hints."""


def _check_radians(margin: float) -> float:
    if not 0 <= margin <= math.pi / 2:
        raise ValueError(f"the margin is in radians, between 0 and π/2, but is {margin:g} (28.65 degrees are 0.5)")
    return margin


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Radians = Annotated[float, AfterValidator(_check_radians)]


class LossOptions(ConfigSection):
    """What every loss has: a type, a weight in the sum, and two facts that decide how it is fed.

    `needs_positives`: it compares images of one batch, so a batch must hold several images per identity.
    `uses_classifier`: it owns one weight vector (or more) per identity and scores features against them.
    """

    needs_positives: ClassVar[bool] = False
    uses_classifier: ClassVar[bool] = False

    type: str
    weight: Positive = Field(1.0, description="factor of this loss in the total")


class CrossEntropyConfig(LossOptions):
    """Softmax cross-entropy over the training identities."""

    uses_classifier: ClassVar[bool] = True

    type: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread evenly over all identities")


class TripletConfig(LossOptions):
    """Batch-hard triplet loss."""

    needs_positives: ClassVar[bool] = True

    type: Literal["triplet"] = "triplet"
    margin: NotNegative = Field(0.3, description="in units of the Euclidean distance (0 to 2 when normalised)")
    soft: bool = Field(False, description="softplus(d_ap - d_an) instead of the margin")
    normalize: bool = Field(True, description="L2-normalise the features before measuring distances")

    @model_validator(mode="after")
    def _margin_or_soft(self) -> Self:
        if self.soft and self.margin != type(self).model_fields["margin"].default:
            raise ValueError("'margin' has no effect with 'soft: true'; remove one of the two")
        return self


class CenterConfig(LossOptions):
    """Squared distance to a learned centre per identity."""

    type: Literal["center"] = "center"
    weight: Positive = Field(
        5e-4, description="factor of this loss in the total; the centres learn independently of it"
    )
    lr: Positive = Field(0.5, description="learning rate of the centres (plain SGD)")
    normalize: bool = Field(False, description="L2-normalise the features before comparing them with the centres")


class ArcFaceConfig(LossOptions):
    """Additive angular margin (Deng et al., CVPR 2019)."""

    uses_classifier: ClassVar[bool] = True

    type: Literal["arcface"] = "arcface"
    scale: Positive = Field(30.0, description="factor of the cosines before the softmax")
    margin: Radians = Field(0.5, description="in radians, added to the angle of the true identity")


class CosFaceConfig(LossOptions):
    """Additive cosine margin (Wang et al., CVPR 2018)."""

    uses_classifier: ClassVar[bool] = True

    type: Literal["cosface"] = "cosface"
    scale: Positive = Field(64.0, description="factor of the cosines before the softmax")
    margin: NotNegative = Field(0.35, description="subtracted from the cosine of the true identity (no unit)")


class SubCenterArcFaceConfig(LossOptions):
    """ArcFace with several centres per identity, the nearest of which counts (Deng et al., ECCV 2020)."""

    uses_classifier: ClassVar[bool] = True

    type: Literal["subcenter_arcface"] = "subcenter_arcface"
    scale: Positive = Field(64.0, description="factor of the cosines before the softmax")
    margin: Radians = Field(0.5, description="in radians, added to the angle of the true identity")
    sub_centers: int = Field(3, ge=1, description="centres per identity")


class SupConConfig(LossOptions):
    """Supervised contrastive loss on normalised features (Khosla et al., NeurIPS 2020)."""

    needs_positives: ClassVar[bool] = True

    type: Literal["supcon"] = "supcon"
    temperature: Positive = Field(0.1, description="divisor of the cosines")


class CircleConfig(LossOptions):
    """Circle loss on pairs of normalised features (Sun et al., CVPR 2020)."""

    needs_positives: ClassVar[bool] = True

    type: Literal["circle"] = "circle"
    margin: float = Field(0.4, gt=0, lt=1, description="relaxation m, in units of the cosine")
    gamma: Positive = Field(80.0, description="scale of the similarity scores")


class MultiSimilarityConfig(LossOptions):
    """Multi-similarity loss over all pairs of normalised features (Wang et al., CVPR 2019)."""

    needs_positives: ClassVar[bool] = True

    type: Literal["multi_similarity"] = "multi_similarity"
    alpha: Positive = Field(2.0, description="exponential weight of the positive pairs")
    beta: Positive = Field(50.0, description="exponential weight of the negative pairs")
    base: float = Field(0.5, ge=-1, le=1, description="cosine around which pairs are weighted")


def _with_long_name(loss: Any) -> Any:
    """Return one entry of the list with the long name of its type."""
    if isinstance(loss, Mapping) and isinstance(name := loss.get("type"), str):
        return {**loss, "type": SHORT_NAMES.get(name, name)}
    return loss


_AnyLoss = (
    CrossEntropyConfig
    | TripletConfig
    | CenterConfig
    | ArcFaceConfig
    | CosFaceConfig
    | SubCenterArcFaceConfig
    | SupConConfig
    | CircleConfig
    | MultiSimilarityConfig
)
LossConfig = Annotated[_AnyLoss, Field(discriminator="type"), BeforeValidator(_with_long_name)]
LOSS_TYPES: dict[str, type[LossOptions]] = {kind.model_fields["type"].default: kind for kind in get_args(_AnyLoss)}


def suggest_loss(name: str) -> str:
    """Return the hint for an unknown loss name."""
    return did_you_mean({**SHORT_NAMES, **OTHER_NAMES}.get(name.lower(), name.lower()), LOSS_TYPES)


def parse_loss(loss: LossConfig | Mapping[str, Any], where: str) -> LossConfig:
    """Validate one entry of the list; `where` names it in messages (`losses[1]`).

    Raises:
        ConfigError: an unknown type or option (with the nearest name), or a value of the wrong type or range.
    """
    if isinstance(loss, LossOptions):
        return loss
    if not isinstance(loss, Mapping) or "type" not in loss:
        raise ConfigError(f"{where}: needs a type, such as {{type: triplet}}")
    values: Mapping[str, Any] = _with_long_name(loss)
    name = str(values["type"])
    if name not in LOSS_TYPES:
        raise ConfigError(f"{where}.type: there is no loss '{name}'.{suggest_loss(name)}")
    known = LOSS_TYPES[name].model_fields
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key '{where}.{key}' of loss '{name}'.{did_you_mean(str(key), known)}")
    try:
        return cast(LossConfig, LOSS_TYPES[name].model_validate(values))
    except ValidationError as error:
        keys = [".".join([where, *map(str, finding["loc"])]) for finding in error.errors()]
        said = [finding["msg"].removeprefix("Value error, ") for finding in error.errors()]
        raise ConfigError("\n".join(map(": ".join, zip(keys, said, strict=True)))) from error
