import pytest
import torch
import torchvision
from torch import nn

from handclip.errors import ConfigError
from handclip.models.encoder import EncoderWeights, freeze_encoder
from handclip.models.resnet import ResNetEncoder

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def torchvisions_resnet50(seed: int = 0) -> nn.Module:
    """torchvision's network, whose batch norms have seen some images, with last stride 1."""
    torch.manual_seed(seed)
    model = torchvision.models.resnet50()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.1, 0.5)
    first = model.layer4[0]
    first.conv2.stride = first.downsample[0].stride = (1, 1)
    return model.eval()


def test_it_computes_what_torchvisions_does_with_its_weights() -> None:
    theirs = torchvisions_resnet50()
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    ours = ResNetEncoder("resnet50", EncoderWeights(state, "file")).eval()
    theirs.fc = nn.Identity()
    with torch.no_grad():
        embeddings = ours(IMAGES)
        torch.testing.assert_close(embeddings["pooled"], theirs(IMAGES), rtol=1e-4, atol=1e-5)
    assert list(embeddings) == ["pooled"] and ours.embedding_dims == {"pooled": 2048}
    assert sum(parameter.numel() for parameter in ours.parameters()) == 23_508_032


@pytest.mark.parametrize(("name", "side", "dim"), [("resnet50", 224, 2048), ("resnet_small", 112, 512)])
def test_the_last_stride_is_1(name: str, side: int, dim: int) -> None:
    encoder = ResNetEncoder(name).eval()
    assert (encoder.preprocessing.height, encoder.preprocessing.width) == (side, side)
    shapes = []
    encoder.trunk.layer4.register_forward_hook(lambda module, given, out: shapes.append(tuple(out.shape)))
    with torch.no_grad():
        encoder(torch.zeros(1, 3, side, side))
    assert shapes == [(1, dim, side // 16, side // 16)]


def test_colours_are_imagenets_and_photographs_are_resized_as_for_clip() -> None:
    preprocessing = ResNetEncoder("resnet_small", input_size=(64, 32)).preprocessing
    assert preprocessing.to_dict() == {
        "height": 64,
        "width": 32,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }


def test_no_norm_starts_at_zero() -> None:
    for name, parameter in ResNetEncoder("resnet_small").named_parameters():
        assert parameter.ndim != 1 or name.endswith("bias") or parameter.all(), name


def test_the_last_blocks_train() -> None:
    encoder = ResNetEncoder("resnet_small")
    freeze_encoder(encoder, "all_but_last_1")
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad is name.startswith("trunk.layer4."), name
    assert not list(encoder.new_parameters())
    with pytest.raises(ConfigError, match="the encoder has only 5 blocks"):
        freeze_encoder(encoder, "all_but_last_6")
