import pytest
import torch
from torch import nn

from handclip.config.loading import parse_config
from handclip.errors import ConfigError
from handclip.models.builder import build_model
from handclip.models.clip_encoder import CLIPImageEncoder
from handclip.models.embedding_model import EmbeddingModel
from handclip.models.encoder import freeze_encoder
from handclip.models.registry import build_encoder

pytestmark = pytest.mark.usefixtures("tiny_models")


def trainable_parts(name: str, freeze: str) -> set[str]:
    encoder = CLIPImageEncoder(name)
    freeze_encoder(encoder, freeze)
    return {key.removeprefix("tower.") for key, p in encoder.named_parameters() if p.requires_grad}


def parameters(name: str) -> set[str]:
    return {key.removeprefix("tower.") for key, _ in CLIPImageEncoder(name).named_parameters()}


MODELS = ["vit_small", "rn_small", "tiny-timm-vit", "tiny-timm-cnn"]


@pytest.mark.parametrize("name", MODELS)
def test_everything_or_nothing(name: str) -> None:
    assert trainable_parts(name, "none") == parameters(name)
    assert trainable_parts(name, "all") == set()


@pytest.mark.parametrize(
    ("name", "freeze", "prefixes"),
    [
        ("vit_small", "all_but_last_1", ("transformer.resblocks.5.", "ln_post.", "proj")),
        ("vit_small", "all_but_last_2", ("transformer.resblocks.4.", "transformer.resblocks.5.", "ln_post.", "proj")),
        ("vit_small", "all_but_last_6", ("transformer.resblocks.", "ln_post.", "proj")),
        ("rn_small", "all_but_last_1", ("layer4.", "attnpool.")),
        ("rn_small", "all_but_last_3", ("layer2.", "layer3.", "layer4.", "attnpool.")),
        ("tiny-timm-vit", "all_but_last_1", ("trunk.blocks.5.", "trunk.norm.", "trunk.fc_norm.", "head.")),
        ("tiny-timm-cnn", "all_but_last_1", ("trunk.stages.3.", "trunk.head.")),
    ],
)
def test_the_last_blocks_train(name: str, freeze: str, prefixes: tuple[str, ...]) -> None:
    assert trainable_parts(name, freeze) == {key for key in parameters(name) if key.startswith(prefixes)}


@pytest.mark.parametrize("name", [*MODELS, "resnet_small", "mbanet_small"])
def test_the_blocks_cover_every_parameter_once(name: str) -> None:
    values = {"experiment": "a", "model": name, "dataset": "11k", "pretrained": "none"}
    encoder = build_encoder(parse_config(values, "test"))
    held = [
        id(parameter)
        for block in encoder.blocks()
        for part in block
        for parameter in (part.parameters() if isinstance(part, nn.Module) else [part])
    ]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in encoder.parameters()}
    freeze_encoder(encoder, f"all_but_last_{len(encoder.blocks())}")
    assert all(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(("name", "blocks"), [("vit_small", 7), ("rn_small", 5), ("vitb16", 13)])
def test_more_blocks_than_there_are(name: str, blocks: int) -> None:
    with pytest.raises(ConfigError, match=f"freeze: all_but_last_99: the encoder has only {blocks} blocks"):
        freeze_encoder(CLIPImageEncoder(name), "all_but_last_99")


@pytest.mark.parametrize(
    ("freeze", "frozen"), [("none", 0), ("all", 19), ("all_but_last_1", 15), ("all_but_last_4", 3)]
)
def test_d23_frozen_batch_norm_stays_in_eval(freeze: str, frozen: int) -> None:
    encoder = CLIPImageEncoder("rn_small")
    freeze_encoder(encoder, freeze)
    model = EmbeddingModel(encoder, neck="bnneck")
    model.train()
    norms = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.BatchNorm2d)}
    before = {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in norms.items()}
    for _ in range(2):
        model(torch.randn(4, 3, 128, 128) * 3 + 1)
    still = {
        name
        for name, norm in norms.items()
        if torch.equal(norm.running_mean, before[name][0]) and torch.equal(norm.running_var, before[name][1])
    }
    assert still == {name for name, norm in norms.items() if not norm.training}
    assert still == {name for name, norm in norms.items() if not norm.weight.requires_grad}
    assert len(norms) == 19
    assert len(still) == frozen
    assert model.necks["projected"].training
    model.eval()
    assert not any(module.training for module in model.modules())


def test_d23_a_new_model_holds_its_frozen_batch_norm_still() -> None:
    """A trainer keeps the mode it is given, so that the model must come in the right one."""
    values = {"experiment": "a", "model": "rn_small", "dataset": "11k", "pretrained": "none", "input_size": 64}
    model = build_model(parse_config({**values, "freeze": "all_but_last_1"}, "test"))
    frozen = {
        name: module
        for name, module in model.encoder.named_modules()
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad
    }
    before = {name: module.running_mean.clone() for name, module in frozen.items()}
    model(torch.randn(4, 3, 64, 64))
    assert frozen and model.training
    assert all(torch.equal(module.running_mean, before[name]) for name, module in frozen.items())
    assert model.encoder.tower.layer4.training  # type: ignore[union-attr]
