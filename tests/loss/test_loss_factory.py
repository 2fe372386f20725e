from itertools import combinations

import pytest
import torch
from torch import nn

from handclip.config.losses import LOSS_TYPES, TripletConfig
from handclip.errors import ConfigError
from handclip.loss.loss_factory import build_loss

CLASSES, DIM = 5, 8
CORE = ["cross_entropy", "triplet", "center", "arcface"]
TOGGLES = [subset for size in range(1, 5) for subset in combinations(CORE, size)]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]


def make(*names, **options):
    torch.manual_seed(0)
    return build_loss([{"type": name, **options} for name in names], num_classes=CLASSES, feature_dim=DIM)


def batch(dtype=torch.float32, seed=1):
    features = torch.randn(10, DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return features.requires_grad_(), torch.arange(10) % CLASSES


def encoder_gradient(criterion):
    torch.manual_seed(2)
    encoder = nn.Linear(6, DIM)
    images, labels = torch.randn(10, 6), torch.arange(10) % CLASSES
    criterion(features=encoder(images), labels=labels).total.backward()
    return encoder.weight.grad


def test_d11_arguments_go_by_name_only():
    features, labels = batch()
    with pytest.raises(TypeError):
        make("cross_entropy")(features, labels)


@pytest.mark.parametrize("name", LOSS_TYPES)
def test_d11_swapped_features_and_labels_are_refused(name):
    features, labels = batch()
    with pytest.raises(ValueError, match="swapped"):
        make(name)(features=labels, labels=features)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.randn(4, DIM), torch.zeros(4), "labels must be integers"),
        (torch.randn(4, DIM), torch.zeros(4, 1, dtype=torch.long), "labels must be integers"),
        (torch.randn(4, DIM), torch.zeros(3, dtype=torch.long), "4 features for 3 labels"),
        (torch.randn(0, DIM), torch.zeros(0, dtype=torch.long), "0 features for 0 labels"),
        (torch.randn(4, DIM + 1), torch.zeros(4, dtype=torch.long), "8 feature dimensions, got 9"),
        (torch.randn(2, DIM), torch.tensor([0, CLASSES]), r"0\.\.4, got 0\.\.5"),
        (torch.randn(2, DIM), torch.tensor([-1, 2]), r"0\.\.4, got -1\.\.2"),
    ],
)
@pytest.mark.parametrize("name", ["cross_entropy", "center", "arcface", "cosface", "subcenter_arcface"])
def test_d11_a_batch_that_does_not_fit_is_refused(name, features, labels, message):
    with pytest.raises(ValueError, match=message):
        make(name)(features=features, labels=labels)


@pytest.mark.parametrize("name", LOSS_TYPES)
def test_d12_classifiers_see_the_neck_and_comparisons_the_embedding(name):
    criterion = make(name)
    (features, labels), (neck, _) = batch(seed=1), batch(seed=2)

    both = criterion(features=features, labels=labels, neck_features=neck).total.item()

    seen = neck if LOSS_TYPES[name].uses_classifier else features
    ignored = features if LOSS_TYPES[name].uses_classifier else neck
    assert both == criterion(features=seen, labels=labels).total.item()
    assert both != criterion(features=ignored, labels=labels).total.item()


def test_classifiers_see_the_embedding_where_there_is_no_neck():
    features, labels = batch()
    make("cross_entropy", "center")(features=features, labels=labels).total.backward()
    assert features.grad.any()


@pytest.mark.parametrize("subset", TOGGLES, ids="+".join)
def test_d13_d14_d32_every_combination_of_losses_runs(subset):
    criterion = make(*subset)
    features, labels = batch()

    output = criterion(features=features, labels=labels)
    output.total.backward()

    assert list(output.terms) == list(subset)
    for value in [output.total, *output.terms.values()]:
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.isfinite()
    expected = sum(criterion.configs[name].weight * value.item() for name, value in output.terms.items())
    assert output.total.item() == pytest.approx(expected, rel=1e-6)
    for parameter in [features, *criterion.parameters()]:
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@pytest.mark.parametrize("name", LOSS_TYPES)
def test_d14_each_term_is_a_scalar_and_its_weight_counts(name):
    features, labels = batch()
    output = make(name, weight=0.25)(features=features, labels=labels)
    assert output.terms[name].shape == output.total.shape == ()
    assert output.total.item() == pytest.approx(0.25 * output.terms[name].item())


@pytest.mark.parametrize("name", ["cross_entropy", "center", "arcface", "cosface", "subcenter_arcface"])
def test_d15_d30_all_that_a_loss_learns_moves_with_an_optimizer_of_the_criterion_s_parameters(name):
    criterion = make(name, "triplet", "arcface" if name == "cross_entropy" else "cross_entropy")
    features, labels = batch()
    before = {key: value.clone() for key, value in criterion.state_dict().items()}
    optimizer = torch.optim.SGD(criterion.parameters(), lr=1.0)
    assert before

    criterion(features=features, labels=labels).total.backward()
    optimizer.step()

    for key, value in criterion.state_dict().items():
        assert not torch.equal(value, before[key]), f"{key} did not move"


@pytest.mark.parametrize("device", DEVICES)
def test_d16_the_criterion_is_a_module_with_state(device, tmp_path):
    criterion = make(*LOSS_TYPES).to(device)
    features, labels = (tensor.to(device) for tensor in batch())
    torch.save(criterion.state_dict(), tmp_path / "criterion.pth")
    torch.manual_seed(99)
    other = build_loss([{"type": name} for name in LOSS_TYPES], CLASSES, DIM).to(device)
    assert other(features=features, labels=labels).total != criterion(features=features, labels=labels).total

    other.load_state_dict(torch.load(tmp_path / "criterion.pth", weights_only=True, map_location=device))

    assert torch.equal(other(features=features, labels=labels).total, criterion(features=features, labels=labels).total)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LOSS_TYPES)
def test_d25_low_precision_features_and_autocast_are_computed_in_float32(name, device):
    criterion = make(name).to(device).eval()  # centres stay then
    features, labels = batch(torch.bfloat16)
    features, labels = features.detach().to(device).requires_grad_(), labels.to(device)
    exact = features.detach().float().requires_grad_()

    expected = criterion(features=exact, labels=labels).total
    expected.backward()
    with torch.autocast(device, dtype=torch.bfloat16):
        value = criterion(features=features, labels=labels).total
        autocast_value = criterion(features=exact, labels=labels).total
    value.backward()

    assert value.dtype == torch.float32
    assert value.device.type == device
    assert torch.equal(value, expected)
    assert torch.equal(autocast_value, expected)
    assert features.grad.isfinite().all()
    torch.testing.assert_close(features.grad.float(), exact.grad, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("name", LOSS_TYPES)
def test_d29_toggling_a_loss_changes_the_encoder_s_gradient(name):
    others = [other for other in CORE if other != name]
    without, with_it = encoder_gradient(make(*others)), encoder_gradient(make(*others, name))
    assert not torch.equal(without, with_it)
    torch.testing.assert_close(with_it - without, encoder_gradient_of_last_alone(others, name), rtol=1e-3, atol=1e-5)


def encoder_gradient_of_last_alone(others, name):
    """Gradient of one term with the same initial weights as in the full combination."""
    criterion = make(*others, name)
    for other in others:
        del criterion.terms[other]
    return encoder_gradient(criterion)


def test_ce_and_arcface_are_two_heads():
    criterion = make("cross_entropy", "arcface")
    shapes = {name: tuple(parameter.shape) for name, parameter in criterion.named_parameters()}
    assert shapes == {
        "terms.cross_entropy.classifier.weight": (CLASSES, DIM),
        "terms.cross_entropy.classifier.bias": (CLASSES,),
        "terms.arcface.weight": (CLASSES, DIM),
    }


def test_a_type_may_come_twice():
    features, labels = batch()
    criterion = build_loss([TripletConfig(), {"type": "triplet", "soft": True, "weight": 0.5}], CLASSES, DIM)
    output = criterion(features=features, labels=labels)
    assert list(output.terms) == ["triplet", "triplet_2"]
    assert output.total.item() == pytest.approx(output.terms["triplet"].item() + 0.5 * output.terms["triplet_2"].item())


def test_ce_is_understood_for_cross_entropy():
    assert list(build_loss([{"type": "ce"}, {"type": "ce", "weight": 2}], CLASSES, DIM).terms) == [
        "cross_entropy", "cross_entropy_2",
    ]  # fmt: skip


def test_impossible_requests_are_refused():
    with pytest.raises(ConfigError, match="the list is empty"):
        build_loss([], CLASSES, DIM)
    with pytest.raises(ConfigError, match=r"losses\[1\]\.type: there is no loss 'id'."):
        build_loss([{"type": "triplet"}, {"type": "id"}], CLASSES, DIM)
    for classes in (0, 1):
        with pytest.raises(ConfigError, match="at least two identities"):
            build_loss([{"type": "cross_entropy"}], classes, DIM)
    with pytest.raises(ValueError, match="feature_dim"):
        build_loss([{"type": "cross_entropy"}], CLASSES, 0)
