import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import parse_config
from handclip.errors import ConfigError
from handclip.loss.criterion import TrainingCriterion
from handclip.loss.loss_factory import build_criterion
from handclip.models.builder import build_model
from handclip.models.embedding_model import EmbeddingModel
from handclip.training import optimization
from handclip.training.optimization import build_optimizer, lr_factors

CE, TRIPLET, CENTER, ARCFACE = ({"type": name} for name in ("cross_entropy", "triplet", "center", "arcface"))
COMBINATIONS = {
    "ce": [CE],
    "ce_triplet": [CE, TRIPLET],
    "ce_center": [CE, CENTER],
    "ce_arcface": [CE, ARCFACE],
    "ce_triplet_center": [CE, TRIPLET, CENTER],
}
LABELS = torch.tensor([0, 0, 1, 1])


def make_config(**values: Any) -> ExperimentConfig:
    base = {"experiment": "a", "model": "vit_small", "dataset": "11k", "pretrained": "none", "input_size": 32}
    return parse_config({**base, **values}, "test")


def make(config: ExperimentConfig, num_classes: int = 2) -> tuple[EmbeddingModel, TrainingCriterion]:
    torch.manual_seed(0)
    model = build_model(config)
    return model, build_criterion(config.losses, num_classes, model.encoder.embedding_dims)


# One step


def take_step(config: ExperimentConfig, model: EmbeddingModel, criterion: TrainingCriterion, images: Tensor) -> None:
    optimizer = build_optimizer(config, model, criterion)
    criterion(embeddings=model(images), labels=LABELS).total.backward()
    optimizer.step()


def has_no_gradient_by_nature(name: str) -> str | None:
    """Return a parameter whose gradient is large beside this one's, where that is zero but for rounding.

    A bias of all keys of an attention shifts each query's scores by one number, which softmax takes out again; the
    biases in MBA-Net's spatial attention shift whole channels, which batch norm takes out again.
    """
    if name.endswith("attnpool.k_proj.bias"):
        return name.replace("k_proj", "q_proj")
    return name.replace("bias", "weight") if "sam_att" in name and name.endswith("_conv.0.bias") else None


def check_one_step(config: ExperimentConfig, size: int) -> None:
    model, criterion = make(config)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            # MBA-Net's attention starts as the identity: until gamma moves, nothing behind it has a gradient.
            nn.init.constant_(parameter, 0.5)
    whole = nn.ModuleDict({"model": model, "criterion": criterion})
    before = {name: tensor.detach().clone() for name, tensor in whole.state_dict().items()}
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    take_step(config, model, criterion, images)
    after = whole.state_dict()
    parameters = dict(whole.named_parameters())
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            assert torch.equal(after[name], before[name]), f"{name} is frozen but has moved"
            continue
        assert parameter.grad is not None, f"{name} has no gradient"
        assert torch.isfinite(parameter.grad).all(), name
        if large := has_no_gradient_by_nature(name):
            others = parameters[large].grad
            assert others is not None and parameter.grad.abs().max() < 1e-3 * others.abs().max() + 1e-7
            continue
        assert parameter.grad.any(), f"the gradient of {name} is zero"
        assert not torch.equal(after[name], before[name]), f"{name} is trainable but has not moved"
    for name, module in model.encoder.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            stays = not module.weight.requires_grad
            key = f"model.encoder.{name}.running_mean"
            assert torch.equal(after[key], before[key]) is stays, name


@pytest.mark.parametrize("losses", COMBINATIONS)
@pytest.mark.parametrize("freeze", ["none", "all_but_last_1"])
@pytest.mark.parametrize(
    ("model", "size"), [("vit_small", 32), ("rn_small", 64), ("resnet_small", 64), ("mbanet_small", 64)]
)
def test_d10_d15_what_is_trainable_moves_and_what_is_frozen_does_not(
    model: str, size: int, freeze: str, losses: str
) -> None:
    config = make_config(
        model=model, input_size=size, freeze=freeze, losses=COMBINATIONS[losses], batch_size=4, images_per_identity=2
    )
    check_one_step(config, size)


@pytest.mark.parametrize(("model", "size"), [("vitb16", 32), ("rn50", 64)])
def test_d10_the_full_backbones_move_too(model: str, size: int) -> None:
    values = {"batch_size": 4, "images_per_identity": 2, "losses": [*COMBINATIONS["ce_triplet_center"], ARCFACE]}
    check_one_step(make_config(model=model, input_size=size, **values), size)


@pytest.mark.parametrize("freeze", ["none", "all"])
def test_d10_d50_both_embeddings_and_their_necks_move(freeze: str) -> None:
    values = {"embedding": "both", "neck": "bnneck", "freeze": freeze, "losses": [*COMBINATIONS["ce_triplet_center"]]}
    check_one_step(make_config(batch_size=4, images_per_identity=2, **values), 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize(("model", "size"), [("vit_small", 32), ("rn_small", 64)])
def test_d10_parameters_move_on_a_gpu(model: str, size: int) -> None:
    config = make_config(model=model, input_size=size, losses=COMBINATIONS["ce_triplet_center"])
    parts = [part.cuda() for part in make(config)]
    whole = nn.ModuleDict({"model": parts[0], "criterion": parts[1]})
    before = {name: parameter.detach().clone() for name, parameter in whole.named_parameters()}
    optimizer = build_optimizer(config, *parts)  # type: ignore[arg-type]
    parts[1](embeddings=parts[0](torch.randn(4, 3, size, size).cuda()), labels=LABELS.cuda()).total.backward()
    optimizer.step()
    for name, parameter in whole.named_parameters():
        if not has_no_gradient_by_nature(name):
            assert torch.equal(parameter, before[name]) is not parameter.requires_grad, name


# Which parameter is where


@pytest.mark.parametrize("losses", COMBINATIONS)
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("vit_small", {"embedding": "both"}),
        ("rn_small", {"embedding": "both"}),
        ("resnet_small", {}),
        ("mbanet_small", {}),
    ],
)
@pytest.mark.parametrize("neck", ["bnneck", "hidden"])
@pytest.mark.parametrize("freeze", ["none", "all_but_last_1", "all"])
def test_d15_every_trainable_parameter_is_in_the_optimizer_once(
    model: str, options: dict[str, Any], neck: str, freeze: str, losses: str
) -> None:
    config = make_config(model=model, input_size=64, freeze=freeze, losses=COMBINATIONS[losses], neck=neck, **options)
    built = make(config)
    held = [id(p) for group in build_optimizer(config, *built).param_groups for p in group["params"]]
    trainable = {id(p) for module in built for p in module.parameters() if p.requires_grad}
    assert len(held) == len(set(held))
    assert set(held) == trainable


def test_d36_each_group_has_its_own_learning_rate_and_decay() -> None:
    config = make_config(
        lr=0.01, backbone_lr_scale=0.5, weight_decay=0.3, neck="bnneck", losses=[CE, {"type": "center", "lr": 0.25}]
    )
    model, criterion = make(config)
    main = build_optimizer(config, model, criterion)
    assert isinstance(main, torch.optim.AdamW)
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in main.param_groups} == {
        "encoder": (0.005, 0.3),
        "encoder (no decay)": (0.005, 0.0),
        "new": (0.01, 0.3),
        "new (no decay)": (0.01, 0.0),
    }
    for group in main.param_groups:
        assert all((p.ndim < 2) is group["name"].endswith("(no decay)") for p in group["params"])
    encoder = {id(p) for p in model.encoder.parameters()}
    for group in main.param_groups:
        assert all((id(p) in encoder) is group["name"].startswith("encoder") for p in group["params"])


def test_new_parameters_of_the_encoder_learn_as_fast_as_the_classifier() -> None:
    config = make_config(model="mbanet_small", lr=0.01, backbone_lr_scale=0.1, neck="hidden")
    model, criterion = make(config)
    main = build_optimizer(config, model, criterion)
    group_of = {id(p): group for group in main.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        is_trunk = name.startswith("encoder.backbone.")
        assert group["lr"] == pytest.approx(0.001 if is_trunk else 0.01), name
        assert group["name"].startswith("encoder" if is_trunk else "new"), name


def test_frozen_new_parameters_are_in_no_optimizer() -> None:
    config = make_config(model="mbanet_small", freeze="all")
    model, criterion = make(config)
    main = build_optimizer(config, model, criterion)
    assert {id(p) for group in main.param_groups for p in group["params"]} == {id(p) for p in criterion.parameters()}


@pytest.mark.parametrize(("own", "saved"), [(None, True), (True, None)])
def test_a_state_of_another_device_does_not_bring_its_kernel(own: bool | None, saved: bool | None) -> None:
    config = make_config(losses=[CE])
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    optimizers = []
    for fused in (saved, own):
        model, criterion = make(config)
        main = build_optimizer(config, model, criterion)
        for group in main.param_groups:
            group["fused"] = fused
        criterion(embeddings=model(images), labels=LABELS).total.backward()
        optimizers.append(main)
    before, after = optimizers
    before.step()
    state = before.state_dict()
    after.load_state_dict(state)
    assert [group["fused"] for group in after.param_groups] == [own] * len(after.param_groups)
    assert [group["fused"] for group in state["param_groups"]] == [saved] * len(after.param_groups)
    assert after.state_dict()["state"].keys() == state["state"].keys()
    after.step()


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_one_kernel_steps_a_whole_group_and_equals_the_plain_formula(optimizer: str) -> None:
    config = make_config(losses=[CE], optimizer=optimizer, lr=0.01, backbone_lr_scale=1.0, weight_decay=0.05)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    results: list[list[Tensor]] = []
    for fused in (True, None):
        model, criterion = make(config)
        main = build_optimizer(config, model, criterion)
        assert all(group["fused"] for group in main.param_groups)
        for group in main.param_groups:
            group["fused"] = fused
        criterion(embeddings=model(images), labels=LABELS).total.backward()
        parameters = [p for group in main.param_groups for p in group["params"]]
        for _ in range(3):  # on the same gradients, so that only the kernels differ
            main.step()
        results.append(parameters)
    for one_kernel, plain in zip(*results, strict=True):
        torch.testing.assert_close(one_kernel, plain, rtol=1e-5, atol=1e-6)


def test_one_kernel_does_not_depend_on_the_number_of_threads() -> None:
    def stepped(threads: int) -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            random = torch.Generator().manual_seed(0)
            parameters = [nn.Parameter(torch.randn(size, generator=random)) for size in (1, 7, 1025, 99_991)]
            optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.05, fused=True)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=random)
            optimizer.step()
            return list(parameters)
        finally:
            torch.set_num_threads(before)

    assert all(torch.equal(one, two) for one, two in zip(stepped(1), stepped(2), strict=True))


def test_adam_is_adam() -> None:
    config = make_config(optimizer="adam")
    assert type(build_optimizer(config, *make(config))) is torch.optim.Adam


def test_nothing_to_train_is_an_error() -> None:
    config = make_config(freeze="all", losses=[TRIPLET])
    with pytest.raises(ConfigError, match="freeze: nothing is left to train"):
        build_optimizer(config, *make(config))


def test_d15_a_forgotten_parameter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    monkeypatch.setattr(optimization, "_decay_groups", lambda name, p, lr, decay: [{"params": p[1:], "lr": lr}])
    with pytest.raises(AssertionError, match="is trainable but not in the optimizer"):
        build_optimizer(config, *make(config))


# The learning rate over time


def curve(steps_per_epoch: int, **values: Any) -> list[float]:
    config = make_config(**values)
    return lr_factors(config, steps_per_epoch)


def test_d36_cosine_is_half_a_period() -> None:
    steps, epochs, warmup = 28, 10, 2
    factors = curve(steps, epochs=epochs, warmup_epochs=warmup)
    first, last = warmup * steps, epochs * steps - 1
    for step, factor in enumerate(factors):
        if step < first:
            expected = 0.01 + 0.99 * step / first
        else:
            expected = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - first) / (last - first)))
        assert factor == pytest.approx(expected, abs=1e-12)
    assert factors[0] == pytest.approx(0.01)
    assert factors[first] == 1.0
    assert factors[-1] == pytest.approx(0.01)
    assert all(one < other for one, other in pairwise(factors[: first + 1]))
    assert all(one > other for one, other in pairwise(factors[first:]))


def test_d36_steps_fall_after_their_milestones() -> None:
    factors = curve(4, epochs=10, warmup_epochs=1, schedule="step", milestones=[3, 7], gamma=0.5)
    expected = [0.01 + 0.99 * step / 4 for step in range(4)] + [1.0] * 8 + [0.5] * 16 + [0.25] * 12
    assert factors == pytest.approx(expected)


def test_d36_constant_stays_after_the_warm_up() -> None:
    assert curve(5, epochs=4, warmup_epochs=0, schedule="constant") == [1.0] * 20
    assert curve(4, epochs=3, warmup_epochs=0.5, schedule="constant") == pytest.approx([0.01, 0.505, *[1.0] * 10])


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0, 0.5, 1])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_factor_is_always_between_0_and_1(schedule: str, epochs: int, warmup: float, steps: int) -> None:
    factors = curve(steps, epochs=epochs, warmup_epochs=warmup, schedule=schedule)
    assert all(0 < factor <= 1 for factor in factors)
    assert len(factors) == epochs * steps
