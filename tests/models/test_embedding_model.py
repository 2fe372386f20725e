from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from handclip.config.loading import parse_config
from handclip.models.builder import build_model
from handclip.models.clip_encoder import CLIPImageEncoder
from handclip.models.embedding_model import EmbeddingModel, evaluating


def make(embedding: str = "projected", **options: object) -> EmbeddingModel:
    torch.manual_seed(0)
    encoder = CLIPImageEncoder("vit_small", embedding=embedding, input_size=(32, 32))
    return EmbeddingModel(encoder, **options)  # type: ignore[arg-type]


def test_without_a_neck_both_views_are_the_same() -> None:
    model = make()
    embedding = model(torch.randn(3, 3, 32, 32))["projected"]
    assert embedding.features is embedding.neck_features
    assert not model.necks and model.feature_dim == 256


def test_the_neck_normalises_the_batch_and_has_no_bias() -> None:
    model = make("both", neck="bnneck")
    assert {name: neck.num_features for name, neck in model.necks.items()} == {
        "before_projection": 192,
        "projected": 256,
    }
    embeddings = model(torch.randn(8, 3, 32, 32))
    for name, embedding in embeddings.items():
        neck = model.necks[name]
        assert not neck.bias.requires_grad and neck.weight.requires_grad
        assert not neck.bias.any()
        torch.testing.assert_close(embedding.neck_features.mean(0), torch.zeros(neck.num_features), atol=1e-5, rtol=0)
        assert not torch.allclose(embedding.features, embedding.neck_features)


@pytest.mark.parametrize("test_feature", ["after_neck", "before_neck"])
def test_the_feature_that_is_compared(test_feature: str) -> None:
    model = make("both", neck="bnneck", test_feature=test_feature)
    for neck in model.necks.values():
        neck.running_mean.uniform_(-1, 1)
        neck.running_var.uniform_(0.5, 2)
        torch.nn.init.uniform_(neck.weight)
    model.eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        feature, embeddings = model.embed(images), model(images)
        raw = model.encoder(images)
        expected = []
        for name, neck in model.necks.items():
            normalised = (raw[name] - neck.running_mean) / (neck.running_var + neck.eps).sqrt() * neck.weight
            torch.testing.assert_close(embeddings[name].features, raw[name])
            torch.testing.assert_close(embeddings[name].neck_features, normalised, rtol=1e-4, atol=1e-5)
            expected.append(normalised if test_feature == "after_neck" else raw[name])
    assert feature.shape == (4, model.feature_dim) == (4, 448)
    torch.testing.assert_close(feature, torch.cat(expected, dim=1), rtol=1e-4, atol=1e-5)


def test_the_neck_computes_in_float32_under_autocast() -> None:
    model = make(neck="bnneck")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = model(torch.randn(4, 3, 32, 32))["projected"]
    assert embedding.features.dtype == torch.bfloat16
    assert embedding.neck_features.dtype == torch.float32


MODES: dict[str, Callable[[EmbeddingModel], object]] = {
    "training": lambda model: model.train(),
    "evaluation": lambda model: model.eval(),
    "training of the necks alone": lambda model: model.eval().necks.train(),
    "training of one layer alone": lambda model: next(model.eval().encoder.modules()).train(),
}


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    name=st.sampled_from(["vit_small", "rn_small", "mbanet_small", "resnet_small"]),
    neck=st.sampled_from(["none", "bnneck", "hidden"]),
    test_feature=st.sampled_from(["after_neck", "before_neck"]),
    mode=st.sampled_from(sorted(MODES)),
    freeze=st.sampled_from(["none", "all_but_last_1"]),
    batch=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_an_embedding_does_not_depend_on_who_shares_the_batch(
    name: str, neck: str, test_feature: str, mode: str, freeze: str, batch: int, seed: int
) -> None:
    torch.manual_seed(seed)
    wanted = {"test_feature": test_feature} if neck != "none" else {}
    values = {"experiment": "a", "model": name, "dataset": "11k", "pretrained": "none", "input_size": 32}
    model = build_model(parse_config({**values, "neck": neck, "freeze": freeze, **wanted}, "test"))
    with torch.no_grad():
        for _ in range(2):  # running statistics that are not those of the batch
            model(torch.randn(4, 3, 32, 32))
        images = torch.randn(batch, 3, 32, 32)
        expected = model.eval().embed(images)
        MODES[mode](model)
        modes = [module.training for module in model.modules()]
        before = {key: value.clone() for key, value in model.state_dict().items()}
        together = model.embed(images)
        alone = torch.cat([model.embed(image[None]) for image in images])
    assert torch.equal(together, expected)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_mode_comes_back_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout().eval())
    with pytest.raises(ValueError, match="x"), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ValueError("x")
    assert [module.training for module in model.modules()] == [True, True, False]
