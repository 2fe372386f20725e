import math

import pytest
import torch
from pytorch_metric_learning import losses

from handclip.loss.arcface import ArcFaceLoss
from handclip.loss.loss_factory import build_loss


def plane(angle):
    return [math.cos(angle), math.sin(angle)]


@pytest.mark.parametrize("scale", [1.0, 30.0, 64.0])
@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5, 1.2])
@pytest.mark.parametrize("theta", [0.0, 1e-4, 0.01, 0.7, 2.0, math.pi - 0.51, math.pi - 0.49, 3.1, math.pi])
def test_d28_logits_equal_the_closed_form(theta, margin, scale):
    loss = ArcFaceLoss(2, 2, scale, margin)
    loss.weight.data = torch.tensor([plane(0.0), plane(1.0)]) * 7

    logits = loss.logits(torch.tensor([plane(theta)]) * 3, torch.tensor([0]))

    with_margin = math.cos(theta + margin) if theta < math.pi - margin else math.cos(theta) - margin * math.sin(margin)
    expected = torch.tensor([[scale * with_margin, scale * math.cos(theta - 1)]])
    torch.testing.assert_close(logits, expected, atol=2e-6 * scale, rtol=0)


def test_d28_scale_and_margin_of_the_config_reach_the_logits():
    torch.manual_seed(0)
    criterion = build_loss([{"type": "arcface", "scale": 20, "margin": 0.3}], num_classes=3, feature_dim=4)
    arcface = criterion.terms["arcface"]
    features, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])

    output = criterion(features=features, labels=labels)

    cosines = torch.cosine_similarity(features[:, None], arcface.weight[None], dim=2).double()
    logits = 20 * cosines
    for i, y in enumerate(labels):
        logits[i, y] = 20 * torch.cos(torch.acos(cosines[i, y]) + 0.3)
    expected = -logits.log_softmax(dim=1)[torch.arange(5), labels].mean()
    assert output.total.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("margin", [0.3, 0.5, 1.0])
def test_equals_the_library_in_value_and_gradient(margin):
    torch.manual_seed(0)
    loss = ArcFaceLoss(6, 8, scale=30, margin=margin)
    reference = losses.ArcFaceLoss(6, 8, scale=30, margin=math.degrees(margin))
    reference.W.data = loss.weight.detach().T.clone()
    features, labels = torch.randn(24, 8), torch.arange(24) % 6
    features[0] = -loss.weight.detach()[0] + 0.05 * torch.randn(8)  # beyond pi - m
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()

    value, expected = loss(ours, labels), reference(theirs, labels)
    value.backward()
    expected.backward()

    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(loss.weight.grad, reference.W.grad.T, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["arcface", "subcenter_arcface"])
def test_d28_gradient_is_finite_where_the_feature_meets_its_weight_vector(name, sign, dtype):
    for seed in range(40):
        torch.manual_seed(seed)
        criterion = build_loss([{"type": name, "scale": 1.0}], num_classes=5, feature_dim=8)
        (weight,) = criterion.parameters()
        vector = weight[:1] if name == "arcface" else weight.T[:1]
        features = (sign * vector.detach()).to(dtype).requires_grad_()

        criterion(features=features, labels=torch.tensor([0])).total.backward()

        assert features.grad.isfinite().all()
        assert features.grad.norm() * features.norm() < 2  # the slope along an angle is bounded by the scale
        assert weight.grad.isfinite().all()
