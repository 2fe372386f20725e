"""ResNets, as in the strong baseline of person re-identification (Luo et al. 2019): last stride 1, average pool."""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from handclip.datasets.transforms import Preprocessing
from handclip.models.encoder import RANDOM, EncoderWeights, ImageEncoder
from handclip.models.state_dict import load_checked

RESNETS: dict[str, int] = {"resnet50": 224, "resnet_small": 112}
"""Name of each ResNet and its native input size in pixels."""


class _RoundingUpPool(nn.AvgPool2d):
    """An average pool that rounds the map's sides up, as the stride of the shortcut beside it does."""

    def __init__(self, side: int) -> None:
        super().__init__(side, ceil_mode=True)


_SHAPES: dict[str, dict[str, Any]] = {
    "resnet50": {"layers": (3, 4, 6, 3), "channels": (64, 128, 256, 512)},
    # Its maps shrink by average pools in place of strides: the gradient of a strided 3x3 convolution in bfloat16 takes
    # two busy CPU cores several times as long.
    "resnet_small": {
        "layers": (1, 1, 1, 1),
        "channels": (32, 64, 128, 128),
        "stem_type": "deep",
        "stem_width": 16,
        "aa_layer": _RoundingUpPool,
    },
}


class Trunk(ResNet):
    """A ResNet with random weights, without classifier, and with last stride 1.

    A last map of 14x14 in place of 7x7 (at 224 px) costs no parameter and keeps more detail (Luo et al. 2019).
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, name: str) -> None:
        """Build one of `RESNETS`."""
        # A block's last norm at zero would keep the gradient from those before it for the first steps.
        super().__init__(Bottleneck, num_classes=0, zero_init_last=False, **_SHAPES[name])  # type: ignore[arg-type]
        self.layer3_features: int = Bottleneck.expansion * _SHAPES[name]["channels"][2]
        first: Any = self.layer4[0]
        first.conv2.stride = first.downsample[0].stride = (1, 1)
        first.aa = nn.Identity()

    def to_layer3(self, images: Tensor) -> Tensor:
        """Return layer3's map of images of shape (B, 3, H, W): (B, C, H/16, W/16), rounded up."""
        features: Tensor = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        for stage in (self.layer1, self.layer2, self.layer3):
            features = stage(features)
        return features

    def blocks(self) -> list[list[nn.Module | nn.Parameter]]:
        """Return the stem and the four residual stages."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]


class ResNetEncoder(ImageEncoder):
    """A ResNet without its classifier; the embedding `pooled` is the average of its last feature map."""

    def __init__(
        self,
        name: str,
        weights: EncoderWeights = RANDOM,
        *,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        """Build the network and load weights.

        Args:
            name: one of `RESNETS`.
            weights: of a network such as torchvision's and timm's.
            input_size: (height, width) in pixels, default the native one.

        Raises:
            CheckpointError: the weights are of another network.
        """
        super().__init__()
        self.trunk = Trunk(name)
        if weights.state_dict is not None:
            load_checked(self.trunk, weights.state_dict, weights.source)
        self.embedding_dims = {"pooled": self.trunk.num_features}
        self.preprocessing = imagenet_preprocessing(input_size or (RESNETS[name], RESNETS[name]), weights.preprocessing)
        self.facts = {"architecture": name, "weights": weights.source}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode images of shape (B, 3, height, width)."""
        return {"pooled": self.trunk.layer4(self.trunk.to_layer3(images)).mean(dim=(2, 3))}

    def blocks(self) -> Sequence[Sequence[nn.Module | nn.Parameter]]:
        """Return the stem and the four residual stages."""
        return self.trunk.blocks()


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def imagenet_preprocessing(size: tuple[int, int], otherwise: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing for (height, width) in pixels, with what the weights have otherwise.

    Colours are normalised as every one of timm's weights of ResNet-50 expects. Photographs are resized as for CLIP's
    models, whatever the weights were trained with: the models' inputs should not differ in more than they must.
    """
    return Preprocessing(size[0], size[1], **{**IMAGENET, **otherwise})
