import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, miners, reducers

from handclip.loss.triplet_loss import TripletLoss


def brute_force(features, labels, margin, soft, normalize):
    z = F.normalize(features) if normalize else features
    values = []
    for a in range(len(labels)):
        positives = [math.dist(z[a], z[i]) for i in range(len(labels)) if i != a and labels[i] == labels[a]]
        negatives = [math.dist(z[a], z[i]) for i in range(len(labels)) if labels[i] != labels[a]]
        if positives and negatives:
            gap = max(positives) - min(negatives)
            values.append(math.log1p(math.exp(gap)) if soft else max(0.0, gap + margin))
    return sum(values) / len(values) if values else 0.0


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    seed=st.integers(0, 1000),
    soft=st.booleans(),
    normalize=st.booleans(),
)
def test_d26_equals_brute_force_with_singleton_identities(labels, seed, soft, normalize):
    features = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(seed))

    value = TripletLoss(0.3, soft, normalize)(features, torch.tensor(labels))

    assert value.item() == pytest.approx(brute_force(features, labels, 0.3, soft, normalize), abs=1e-5)


@pytest.mark.parametrize("labels", [[3, 3, 3, 3], [0, 1, 2, 3], [7]])
def test_d26_a_batch_without_triplets_has_zero_loss_and_zero_gradient(labels):
    features = torch.randn(len(labels), 5, requires_grad=True)

    loss = TripletLoss()(features, torch.tensor(labels))
    loss.backward()

    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("soft", [True, False])
def test_equals_the_library_in_value_and_gradient(soft, normalize):
    torch.manual_seed(0)
    features, labels = torch.randn(16, 8), torch.arange(16) // 3  # the last identity has one image
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()

    value = TripletLoss(0.3, soft, normalize)(ours, labels)
    distance = distances.LpDistance(normalize_embeddings=normalize)
    reference = losses.TripletMarginLoss(
        0.0 if soft else 0.3, smooth_loss=soft, distance=distance, reducer=reducers.MeanReducer()
    )
    expected = reference(theirs, labels, miners.BatchHardMiner(distance=distance)(theirs, labels))
    value.backward()
    expected.backward()

    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("soft", [True, False])
def test_d27_duplicate_images_have_a_finite_gradient(soft, normalize):
    features = torch.randn(1, 6).repeat(4, 1).requires_grad_()

    loss = TripletLoss(0.3, soft, normalize)(features, torch.tensor([0, 0, 1, 1]))
    loss.backward()

    assert loss.item() == pytest.approx(math.log(2) if soft else 0.3)
    assert features.grad.isfinite().all()


def test_d27_near_duplicates_keep_their_distance():
    """At 100 from the origin |a|^2 + |b|^2 - 2ab is blind to distances below 0.03."""
    torch.manual_seed(0)
    features, labels = torch.randn(12, 4) * 0.01, torch.arange(12) // 3
    features[:, 0] += 100

    value = TripletLoss(margin=0.3, normalize=False)(features, labels)

    assert value.item() == pytest.approx(brute_force(features, labels, 0.3, soft=False, normalize=False), rel=1e-5)


def test_d27_margin_and_normalisation_are_options():
    features, labels = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 5.0]]), torch.tensor([0, 0, 1, 1])

    assert TripletLoss(margin=0.3)(features, labels).item() == 0
    assert TripletLoss(margin=2.0)(features, labels).item() == pytest.approx(2 - math.sqrt(2))
    raw = [2 - math.sqrt(5), 2 - math.sqrt(13), 3 - math.sqrt(5), 3 - math.sqrt(34)]
    expected = sum(max(0.0, gap + 1) for gap in raw) / 4
    assert TripletLoss(margin=1.0, normalize=False)(features, labels).item() == pytest.approx(expected)
