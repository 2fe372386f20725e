"""MBA-Net (Baisa et al. 2022, "Multi-Branch with Attention Network for Hand-Based Person Recognition")."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from handclip.errors import ConfigError
from handclip.models.attention import ChannelAttention, SpatialAttention
from handclip.models.encoder import RANDOM, EncoderWeights, ImageEncoder
from handclip.models.resnet import Trunk, imagenet_preprocessing
from handclip.models.state_dict import load_checked

MBANETS: dict[str, tuple[str, int]] = {"mbanet": ("resnet50", 324), "mbanet_small": ("resnet_small", 112)}
"""Name of each MBA-Net, with its trunk and its native input size in pixels."""

ATTENTION = ("sam_att3", "sam_att4", "cam_att3", "cam_att4")
"""The attention modules: spatial and channel, behind layer3 and behind layer4."""


class MBANetEncoder(ImageEncoder):
    """A ResNet whose last stage is called three times: as it is, between spatial, and between channel attention.

    Embeddings, each the average of the last map: `global`, `spatial`, `channel`. All three share every weight of the
    trunk, layer4 included. The heads of the paper are `neck: hidden` and the classifiers of the losses.
    """

    def __init__(
        self,
        name: str,
        weights: EncoderWeights = RANDOM,
        *,
        relative_position: str = "published",
        input_size: tuple[int, int] | None = None,
    ) -> None:
        """Build the network and load weights.

        Args:
            name: one of `MBANETS`.
            weights: of the whole encoder, or of its `backbone.` alone.
            relative_position: `published` or `intended`, see `SpatialAttention`.
            input_size: (height, width) in pixels, default the native one.

        Raises:
            ConfigError: the input is not square, as `published` needs it.
            CheckpointError: the weights are of another network.
        """
        super().__init__()
        trunk, side = MBANETS[name]
        height, width = input_size or (side, side)
        # Four of the trunk's convolutions and pools halve each side, rounding up.
        grid = (-(-height // 16), -(-width // 16))
        if relative_position == "published" and grid[0] != grid[1]:
            raise ConfigError(
                f"input_size: {height}x{width} gives a map of {grid[0]}x{grid[1]}, and relative_position: published "
                "needs a square one; choose a square input_size, or relative_position: intended"
            )
        self.backbone = Trunk(trunk)
        self.sam_att3 = SpatialAttention(self.backbone.layer3_features, grid, relative_position)
        self.sam_att4 = SpatialAttention(self.backbone.num_features, grid, relative_position)
        self.cam_att3 = ChannelAttention()
        self.cam_att4 = ChannelAttention()
        if weights.state_dict is not None:
            complete = any(key.startswith(ATTENTION) for key in weights.state_dict)
            own = {key: value for key, value in self.state_dict().items() if not complete and key.startswith(ATTENTION)}
            load_checked(self, {**own, **weights.state_dict}, weights.source)
        self.embedding_dims = dict.fromkeys(("global", "spatial", "channel"), self.backbone.num_features)
        self.preprocessing = imagenet_preprocessing((height, width), weights.preprocessing)
        self.facts = {"architecture": name, "relative_position": relative_position, "weights": weights.source}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode images of shape (B, 3, height, width)."""
        shared = self.backbone.to_layer3(images)
        layer4 = self.backbone.layer4
        maps = {
            "global": layer4(shared),
            "spatial": self.sam_att4(layer4(self.sam_att3(shared))),
            "channel": self.cam_att4(layer4(self.cam_att3(shared))),
        }
        return {name: feature_map.mean(dim=(2, 3)) for name, feature_map in maps.items()}

    def blocks(self) -> Sequence[Sequence[nn.Module | nn.Parameter]]:
        """Return the stem and the four residual stages, the attention with the last."""
        blocks = self.backbone.blocks()
        blocks[-1] += self._attention()
        return blocks

    def new_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the attention modules."""
        return list(itertools.chain.from_iterable(module.parameters() for module in self._attention()))

    def _attention(self) -> list[nn.Module]:
        return [getattr(self, name) for name in ATTENTION]
