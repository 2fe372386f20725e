"""CLIP's image encoders: the visual tower of any open_clip architecture, without its text tower."""

from collections.abc import Sequence
from typing import Any

import open_clip
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from handclip.datasets.transforms import Preprocessing
from handclip.errors import ConfigError, did_you_mean
from handclip.models.encoder import RANDOM, EncoderWeights, ImageEncoder
from handclip.models.position_embedding import resize_position_embedding
from handclip.models.state_dict import load_checked

ALIASES = {
    "vitb16": "ViT-B-16",
    "vitb32": "ViT-B-32",
    "vitl14": "ViT-L-14",
    "rn50": "RN50",
    "rn101": "RN101",
    "rn50x4": "RN50x4",
    "rn50x16": "RN50x16",
    "rn50x64": "RN50x64",
}
"""Short names of the architectures that OpenAI published; they stand for OpenAI's models, with QuickGELU."""

SMALL_MODELS: dict[str, dict[str, Any]] = {
    "vit_small": {
        "embed_dim": 256,
        "vision_cfg": {"image_size": 112, "layers": 6, "width": 192, "head_width": 64, "patch_size": 16},
    },
    "rn_small": {
        "embed_dim": 256,
        "vision_cfg": {"image_size": 128, "layers": (1, 1, 1, 1), "width": 32, "head_width": 64, "patch_size": None},
    },
}
"""CLIP-shaped models small enough for two CPU cores: 2.9 and 5.4 million parameters. They have no weights to load."""


def clip_model_names() -> list[str]:
    """Return every name that `CLIPImageEncoder` can build."""
    return [*ALIASES, *SMALL_MODELS, *open_clip.list_models()]


def open_clip_name(name: str) -> str:
    """Return open_clip's name of the architecture."""
    return ALIASES.get(name, name)


def architecture(name: str) -> dict[str, Any]:
    """Return the architecture's description (`embed_dim`, `vision_cfg`, ...).

    Raises:
        ConfigError: no such model.
    """
    if name in SMALL_MODELS:
        return SMALL_MODELS[name]
    if open_clip_name(name) not in open_clip.list_models():
        raise ConfigError(f"model: there is no model '{name}'.{did_you_mean(name, clip_model_names())}")
    return open_clip.get_model_config(open_clip_name(name))  # type: ignore[no-any-return]


class CLIPImageEncoder(ImageEncoder):
    """The visual tower of a CLIP model.

    Embeddings: `projected` is CLIP's image feature; `before_projection` is what the projection is applied to: the final
    class token for ViT; for RN50's family the average of the last feature map, beside its attention pool.
    Parts that the chosen embeddings do not use are left out, so that no parameter is without a gradient.
    """

    def __init__(
        self,
        name: str,
        weights: EncoderWeights = RANDOM,
        *,
        input_size: tuple[int, int] | None = None,
        embedding: str = "projected",
    ) -> None:
        """Build the tower, load weights, and adapt it to another input size.

        Args:
            name: one of `clip_model_names()`.
            weights: of the visual tower.
            input_size: (height, width) in pixels, default the architecture's own.
            embedding: `projected`, `before_projection` or `both`.
        """
        super().__init__()
        description = architecture(name)
        vision = CLIPVisionCfg(**description["vision_cfg"])
        if vision.timm_model_name:
            vision.timm_model_pretrained = False
        tower = _build_vision_tower(description["embed_dim"], vision, quick_gelu=bool(weights.quick_gelu))
        if weights.quick_gelu and isinstance(tower, TimmModel):
            raise ConfigError(f"quick_gelu: true: {name} is built by timm, which does not have this activation")
        if weights.state_dict is not None:
            load_checked(tower, weights.state_dict, weights.source)
        elif isinstance(tower, ModifiedResNet):
            _undo_zero_residuals(tower)
        side = vision.image_size
        native = (side, side) if isinstance(side, int) else tuple(side)
        size = input_size or native
        if size != native:
            _resize_tower(tower, name, native, size)

        self.tower = tower
        self.embedding_dims = _select_embeddings(tower, embedding, name)
        self.preprocessing = Preprocessing(*size, **weights.preprocessing)
        # There is nothing to choose in RN50's family, which has ReLU.
        uses_quick_gelu = any(isinstance(module, QuickGELU) for module in tower.modules())
        activation = None if isinstance(tower, ModifiedResNet) else uses_quick_gelu
        self.facts = {"architecture": open_clip_name(name), "quick_gelu": activation, "weights": weights.source}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode images of shape (B, 3, height, width)."""
        embeddings: dict[str, Tensor] = {}
        if isinstance(self.tower, VisionTransformer):
            tokens = self.tower.transformer(self.tower._embeds(images))
            pooled, _ = self.tower._pool(tokens)
            embeddings["before_projection"] = pooled
            if self.tower.proj is not None:
                embeddings["projected"] = pooled @ self.tower.proj
        elif isinstance(self.tower, ModifiedResNet):
            feature_map = images
            for stage in (self.tower.stem, *_residual_stages(self.tower)):
                feature_map = stage(feature_map)
            if "before_projection" in self.embedding_dims:
                embeddings["before_projection"] = feature_map.mean(dim=(2, 3))
            if self.tower.attnpool is not None:
                embeddings["projected"] = self.tower.attnpool(feature_map)
        else:
            pooled = self.tower.trunk(images)
            embeddings["before_projection"] = pooled
            if "projected" in self.embedding_dims:
                embeddings["projected"] = self.tower.head(pooled)
        return {name: embeddings[name] for name in self.embedding_dims}

    def blocks(self) -> Sequence[Sequence[nn.Module | nn.Parameter]]:
        """Return the stem and the transformer blocks (ViT), or the stem and the residual stages (RN)."""
        tower = self.tower
        if isinstance(tower, VisionTransformer):
            stem = [tower.conv1, tower.class_embedding, tower.positional_embedding, tower.ln_pre]
            blocks = [stem, *([block] for block in tower.transformer.resblocks)]
            blocks[-1] += [part for part in (tower.attn_pool, tower.ln_post, tower.proj) if part is not None]
            return blocks
        if isinstance(tower, ModifiedResNet):
            stem = [tower.conv1, tower.bn1, tower.conv2, tower.bn2, tower.conv3, tower.bn3]
            blocks = [stem, *([stage] for stage in _residual_stages(tower))]
            blocks[-1] += [tower.attnpool] if tower.attnpool is not None else []
            return blocks
        trunk_blocks = getattr(tower.trunk, "blocks", None) or getattr(tower.trunk, "stages", None)
        if trunk_blocks is None:
            raise ConfigError(f"freeze: {self.facts['architecture']} cannot be frozen in part; use none or all")
        inner = {id(parameter) for block in trunk_blocks for parameter in block.parameters()}
        outer = {name: p for name, p in tower.trunk.named_parameters() if id(p) not in inner}
        # ConvNeXt calls the norm behind its stages norm_pre; in a ViT that is the one before its blocks.
        behind = (*_BEHIND_BLOCKS, "norm_pre.") if hasattr(tower.trunk, "stages") else _BEHIND_BLOCKS
        after = [p for name, p in outer.items() if name.startswith(behind)]
        stem = [p for name, p in outer.items() if not name.startswith(behind)]
        blocks = [stem, *([block] for block in trunk_blocks)]
        blocks[-1] += [*after, tower.head]
        return blocks

    def checkpoint_gradients(self) -> None:
        """Keep only each block's input for the backward pass, which computes the rest of the block a second time.

        Raises:
            ConfigError: the tower has batch norm, or timm does not offer it for this tower.
        """
        if any(isinstance(module, _BatchNorm) for module in self.tower.modules()):
            super().checkpoint_gradients()
        try:
            # open_clip's wrapper of timm's towers would only log that one of them cannot.
            getattr(self.tower, "trunk", self.tower).set_grad_checkpointing(True)
        except (AttributeError, AssertionError, NotImplementedError) as error:
            raise ConfigError(
                f"gradient_checkpointing: timm does not offer it for {self.facts['architecture']}"
            ) from error


_BEHIND_BLOCKS = ("norm.", "fc_norm.", "head.", "attn_pool.", "final_conv.")
"""Prefixes of what a timm trunk holds behind its blocks."""


def _residual_stages(tower: ModifiedResNet) -> tuple[nn.Module, ...]:
    return (tower.layer1, tower.layer2, tower.layer3, tower.layer4)


def _undo_zero_residuals(tower: ModifiedResNet) -> None:
    """Let every layer learn from the first step: a block's last norm at zero keeps the gradient from those before."""
    for stage in _residual_stages(tower):
        for name, parameter in stage.named_parameters():
            if name.endswith("bn3.weight"):
                nn.init.ones_(parameter)


def _select_embeddings(tower: nn.Module, embedding: str, name: str) -> dict[str, int]:
    """Drop what is not used, and return the dimension of each embedding that is."""
    if isinstance(tower, VisionTransformer):
        dims = {"before_projection": tower.proj.shape[0], "projected": tower.proj.shape[1]}
        if embedding == "before_projection":
            tower.proj = None
    elif isinstance(tower, ModifiedResNet):
        dims = {
            "before_projection": tower.attnpool.c_proj.in_features,
            "projected": tower.attnpool.c_proj.out_features,
        }
        if embedding == "before_projection":
            tower.attnpool = None
    elif isinstance(tower, TimmModel) and "pool" not in tower.head._modules and len(tower.head):
        *_, last = (module for module in tower.head.modules() if isinstance(module, nn.Linear))
        dims = {"before_projection": tower.trunk.num_features, "projected": last.out_features}
        if embedding == "before_projection":
            tower.head = nn.Sequential()
    elif embedding == "projected":
        dims = {"projected": architecture(name)["embed_dim"]}
    else:
        raise ConfigError(f"embedding: {embedding}: {name} has no feature before its projection; use projected")
    return dims if embedding == "both" else {embedding: dims[embedding]}


def _resize_tower(tower: nn.Module, name: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    """Adapt position embeddings to another input size.

    Raises:
        ConfigError: the size does not divide into the tower's grid.
    """
    if isinstance(tower, VisionTransformer):
        step = tower.patch_size
    elif isinstance(tower, ModifiedResNet):
        step = (32, 32)
    else:
        step = getattr(getattr(tower.trunk, "patch_embed", None), "patch_size", (1, 1))
    for side, pixels, cell in (("height", new[0], step[0]), ("width", new[1], step[1])):
        if pixels < cell or pixels % cell:
            raise ConfigError(f"input_size: {name} needs a {side} that is a multiple of {cell} pixels, not {pixels}")
    if isinstance(tower, TimmModel):
        if hasattr(tower.trunk, "set_input_size"):
            tower.set_input_size(new)
        return
    owner: Any = tower.attnpool if isinstance(tower, ModifiedResNet) else tower
    old_grid, new_grid = ((size[0] // step[0], size[1] // step[1]) for size in (old, new))
    resized = resize_position_embedding(owner.positional_embedding.data, old_grid, new_grid)
    owner.positional_embedding = nn.Parameter(resized, requires_grad=owner.positional_embedding.requires_grad)
    if isinstance(tower, VisionTransformer):
        tower.image_size, tower.grid_size = new, new_grid


def has_choice_of_activation(name: str) -> bool:
    """Return whether the tower exists with GELU and with QuickGELU: open_clip's own ViTs do."""
    vision = CLIPVisionCfg(**architecture(name)["vision_cfg"])
    return not vision.timm_model_name and not isinstance(vision.layers, (list, tuple))
