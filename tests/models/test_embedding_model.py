import pytest
import torch

from handclip.models.clip_encoder import CLIPImageEncoder
from handclip.models.embedding_model import EmbeddingModel


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
