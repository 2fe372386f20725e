import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses

from handclip.loss.loss_factory import build_loss

LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3])  # identity 3 has no positive


def evaluate(config):
    torch.manual_seed(0)
    criterion = build_loss([config], num_classes=4, feature_dim=6)
    features = torch.randn(8, 6, requires_grad=True)
    output = criterion(features=features, labels=LABELS)
    output.total.backward()
    return criterion, features, output.total


def cosines(features):
    unit = F.normalize(features.detach().double())
    return unit @ unit.T


def test_cosface_equals_the_formula():
    criterion, features, value = evaluate({"type": "cosface", "scale": 10, "margin": 0.2})

    weight = criterion.terms["cosface"].loss.W.detach().T
    logits = 10 * (F.normalize(features.detach()) @ F.normalize(weight).T - 0.2 * F.one_hot(LABELS, 4))
    torch.testing.assert_close(value, F.cross_entropy(logits, LABELS))


def test_subcenter_arcface_takes_its_margin_in_radians_and_the_nearest_centre():
    criterion, features, value = evaluate({"type": "subcenter_arcface", "scale": 10, "margin": 0.4, "sub_centers": 2})

    centers = F.normalize(criterion.terms["subcenter_arcface"].loss.W.detach().T).view(4, 2, 6)
    theta = torch.einsum("bd,ckd->bck", F.normalize(features.detach()), centers).amax(dim=2).acos()
    logits = 10 * torch.cos(theta + 0.4 * F.one_hot(LABELS, 4))
    torch.testing.assert_close(value, F.cross_entropy(logits, LABELS))


def test_supcon_equals_the_formula():
    _, features, value = evaluate({"type": "supcon", "temperature": 0.5})

    scores = cosines(features) / 0.5
    per_anchor = []
    for a in range(7):
        others = [i for i in range(8) if i != a]
        positives = [i for i in others if LABELS[i] == LABELS[a]]
        log_denominator = torch.logsumexp(scores[a, others], dim=0)
        per_anchor.append(-sum(scores[a, p] - log_denominator for p in positives) / len(positives))
    assert value.item() == pytest.approx(sum(per_anchor).item() / 7, rel=1e-5)


def test_circle_equals_the_formula():
    _, features, value = evaluate({"type": "circle", "margin": 0.25, "gamma": 16})

    scores = cosines(features).tolist()
    per_anchor = []
    for a in range(7):
        positives = [scores[a][i] for i in range(8) if i != a and LABELS[i] == LABELS[a]]
        negatives = [scores[a][i] for i in range(8) if LABELS[i] != LABELS[a]]
        pull = sum(math.exp(-16 * max(0, 1.25 - s) * (s - 0.75)) for s in positives)
        push = sum(math.exp(16 * max(0, s + 0.25) * (s - 0.25)) for s in negatives)
        per_anchor.append(math.log1p(pull * push))
    assert value.item() == pytest.approx(sum(per_anchor) / 7, rel=1e-4)


def test_multi_similarity_equals_the_formula():
    _, features, value = evaluate({"type": "multi_similarity", "alpha": 3, "beta": 20, "base": 0.4})

    scores = cosines(features).tolist()
    per_anchor = []
    for a in range(8):
        positives = [scores[a][i] for i in range(8) if i != a and LABELS[i] == LABELS[a]]
        negatives = [scores[a][i] for i in range(8) if LABELS[i] != LABELS[a]]
        per_anchor.append(
            math.log1p(sum(math.exp(-3 * (s - 0.4)) for s in positives)) / 3
            + math.log1p(sum(math.exp(20 * (s - 0.4)) for s in negatives)) / 20
        )
    assert value.item() == pytest.approx(sum(per_anchor) / 8, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("supcon", losses.SupConLoss()),
        ("circle", losses.CircleLoss()),
        ("multi_similarity", losses.MultiSimilarityLoss()),
    ],
)
def test_defaults_and_gradients_are_the_library_s(name, reference):
    _, features, value = evaluate({"type": name})

    theirs = features.detach().clone().requires_grad_()
    expected = reference(theirs, LABELS)
    expected.backward()

    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(features.grad, theirs.grad)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("cosface", losses.CosFaceLoss(4, 6)),
        ("subcenter_arcface", losses.SubCenterArcFaceLoss(num_classes=4, embedding_size=6, margin=math.degrees(0.5))),
    ],
)
def test_angular_heads_have_the_library_s_gradients(name, reference):
    criterion, features, value = evaluate({"type": name})

    weight = criterion.terms[name].loss.W
    reference.W.data = weight.detach().clone()
    theirs = features.detach().clone().requires_grad_()
    expected = reference(theirs, LABELS)
    expected.backward()

    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(features.grad, theirs.grad)
    torch.testing.assert_close(weight.grad, reference.W.grad)
