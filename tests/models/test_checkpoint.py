import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from handclip.config.loading import parse_config
from handclip.errors import CheckpointError, ConfigError, HandCLIPError
from handclip.models.builder import build_model, model_from_checkpoint
from handclip.models.checkpoint import Checkpoint, describe_model
from handclip.models.embedding_model import EmbeddingModel

BASE = {"experiment": "a", "model": "vit_small", "dataset": "11k", "pretrained": "none", "input_size": 32}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def make(seed: int = 0, **values: Any) -> tuple[EmbeddingModel, Checkpoint]:
    torch.manual_seed(seed)
    config = parse_config({**BASE, **values}, "test")
    model = build_model(config)
    for module in model.necks.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-1, 1)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
    checkpoint = Checkpoint(
        run="run",
        epoch=3,
        config=config.to_dict(),
        identities=["dorsal_r/手", "dorsal_r/0002"],
        training_images=["a" * 64],
        manifest_sha256="0" * 64,
        metrics={"val_map": 0.5},
        model_state=model.state_dict(),
        criterion_state={"by_embedding.x": torch.zeros(2)},
        **describe_model(model),
    )
    return model, checkpoint


def features(model: EmbeddingModel, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().embed(images)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model": "rn_small", "embedding": "both"},
        {"neck": "bnneck", "test_feature": "before_neck", "embedding": "before_projection"},
        {"neck": "bnneck", "quick_gelu": True},
        {"input_size": (48, 32)},
        {"input_mean": [0.5, 0.4, 0.3], "input_std": [1, 0.5, 0.25], "interpolation": "bilinear"},
        {"model": "resnet_small", "input_mean": [0, 0, 0], "resize_mode": "longest"},
        {"model": "mbanet_small", "input_std": [1, 1, 1], "interpolation": "bilinear", "resize_mode": "shortest"},
        {"model": "mbanet_small", "relative_position": "intended", "input_size": (64, 32), "neck": "hidden"},
        {"model": "mbanet_small", "neck": "hidden", "test_feature": "after_neck"},
        {"model": "resnet_small", "neck": "bnneck"},
    ],
    ids=lambda values: "-".join(map(str, values.values())),
)
def test_d43_a_checkpoint_describes_itself(tmp_path: Path, values: dict[str, Any]) -> None:
    model, checkpoint = make(**values)
    path = tmp_path / "new" / "run.pth"
    checkpoint.save(str(path))
    random = torch.random.get_rng_state()
    loaded = Checkpoint.load(str(path))
    assert torch.equal(torch.random.get_rng_state(), random), "loading left the random state alone"
    for field in Checkpoint.__dataclass_fields__:
        if not field.endswith("_state"):
            assert getattr(loaded, field) == getattr(checkpoint, field), field
    assert loaded.criterion_state["by_embedding.x"].equal(torch.zeros(2))
    rebuilt = model_from_checkpoint(loaded, str(path))
    size = model.encoder.preprocessing
    images = torch.randn(2, 3, size.height, size.width)
    assert torch.equal(features(rebuilt, images), features(model, images))
    assert (describe_model(rebuilt), rebuilt.test_feature) == (describe_model(model), model.test_feature)


def test_d44_the_file_holds_what_it_promises(tmp_path: Path) -> None:
    _, checkpoint = make()
    checkpoint.save(tmp_path / "run.pth")
    content = torch.load(tmp_path / "run.pth", weights_only=True)
    assert content.keys() == {"format", "version", "handclip", "sha256", *Checkpoint.__dataclass_fields__}
    assert content["metrics"] == {"val_map": 0.5} and content["encoder_facts"]["weights"] == "none (random)"
    assert content["preprocessing"].keys() == {"height", "width", "mean", "std", "interpolation", "resize_mode"}


@pytest.mark.parametrize("values", [{}, {"neck": "bnneck"}, {"model": "rn_small"}])
def test_a_model_comes_ready_for_use(values: dict[str, Any]) -> None:
    model, checkpoint = make(**values)
    assert model.training  # the one to train
    rebuilt = model_from_checkpoint(checkpoint, "run.pth")
    baseline = build_model(parse_config({**BASE, "model": "rn_small", "variant": "baseline"}, "test"))
    for ready in (rebuilt, baseline):
        assert not any(module.training for module in ready.modules())


def test_d43_the_config_in_it_is_plain_data() -> None:
    _, checkpoint = make(losses=[{"type": "triplet"}], augmentation={"flip": 0.5})

    def check(value: Any) -> None:
        assert value is None or type(value) in (str, int, float, bool, list, dict), type(value)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    for part in (checkpoint.config, checkpoint.encoder_facts, checkpoint.embedding_dims, checkpoint.preprocessing):
        check(part)


@pytest.mark.parametrize(
    ("saved", "asked", "message"),
    [
        ({"input_size": (48, 32)}, {"input_size": (32, 48)}, "was trained with input_size: [48, 32]"),
        ({"quick_gelu": True}, {"quick_gelu": False}, "was trained with quick_gelu: true"),
        ({"input_std": [0.5, 0.5, 0.5]}, {"input_std": [1, 1, 1]}, "the config says input_std: [1.0, 1.0, 1.0]"),
        (
            {"model": "mbanet_small", "relative_position": "intended"},
            {"relative_position": "published"},
            "was trained with relative_position: intended, but the config says relative_position: published",
        ),
    ],
)
def test_another_model_is_an_error(tmp_path: Path, saved: dict[str, Any], asked: dict[str, Any], message: str) -> None:
    path = tmp_path / "run.pth"
    make(**saved)[1].save(path)
    config = parse_config({**BASE, **saved, **asked, "resume_from": str(path)}, "test")
    with pytest.raises(CheckpointError) as caught:
        build_model(config)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_what_the_config_or_the_model_leaves_open_is_no_contradiction(tmp_path: Path) -> None:
    path = tmp_path / "run.pth"
    make(model="rn_small", quick_gelu=True)[1].save(path)
    for quick_gelu in (True, False, "auto"):  # RN50's family has ReLU
        values = {**BASE, "model": "rn_small", "quick_gelu": quick_gelu, "resume_from": str(path)}
        build_model(parse_config(values, "test"))
    make(input_size=(48, 32), quick_gelu=True)[1].save(path)
    encoder = build_model(parse_config({**BASE, "input_size": None, "resume_from": str(path)}, "test")).encoder
    assert (encoder.preprocessing.height, encoder.preprocessing.width) == (48, 32)
    assert encoder.facts["quick_gelu"] is True


@pytest.mark.parametrize("neck_before", ["none", "bnneck", "hidden"])
@pytest.mark.parametrize("neck_after", ["none", "bnneck", "hidden"])
@pytest.mark.parametrize("model_name", ["vit_small", "rn_small", "mbanet_small", "resnet_small"])
def test_d20_stage_2_starts_with_the_features_of_stage_1(
    tmp_path: Path, model_name: str, neck_before: str, neck_after: str
) -> None:
    stage1, checkpoint = make(model=model_name, neck=neck_before)
    path = tmp_path / "stage1.pth"
    checkpoint.save(path)
    torch.manual_seed(99)
    values = {**BASE, "model": model_name, "neck": neck_after, "resume_from": str(path)}
    stage2 = build_model(parse_config(values, "test"))
    with torch.no_grad():
        olds, news = (model.eval()(IMAGES) for model in (stage1, stage2))
    assert bool(stage2.necks) is (neck_after != "none")
    for old, new in zip(olds.values(), news.values(), strict=True):
        assert torch.equal(new.features, old.features)
        if neck_before == neck_after:
            assert torch.equal(new.neck_features, old.neck_features)


def test_d20_a_missing_stage_1_is_an_error(tmp_path: Path) -> None:
    config = parse_config({**BASE, "resume_from": str(tmp_path / "a.pth")}, "test")
    with pytest.raises(ConfigError, match=r"resume_from: .*a\.pth: no such file"):
        build_model(config)


def test_d42_a_state_of_another_model_is_an_error(tmp_path: Path) -> None:
    _, checkpoint = make()
    del checkpoint.model_state["encoder.tower.ln_post.weight"]
    with pytest.raises(CheckpointError, match=r"run\.pth: .*1 missing \(such as encoder\.tower\.ln_post\.weight\)"):
        model_from_checkpoint(checkpoint, "run.pth")
    checkpoint.model_state.clear()
    checkpoint.model_state["text.weight"] = torch.zeros(2)
    checkpoint.save(tmp_path / "run.pth")
    config = parse_config({**BASE, "resume_from": str(tmp_path / "run.pth")}, "test")
    with pytest.raises(CheckpointError, match=r"run\.pth: these weights belong to another model: 0 of \d+ entries"):
        build_model(config)


@pytest.mark.parametrize("value", [{"conv1.weight": torch.zeros(2)}, [1], {"format": "other"}, torch.zeros(1)])
def test_a_file_of_another_program(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "run.pth")
    with pytest.raises(CheckpointError, match=r"is not a HandCLIP checkpoint\. Weights of OpenAI .* `pretrained:`"):
        Checkpoint.load(tmp_path / "run.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"version": 99}, "has format version 99; this HandCLIP reads 4"),
        ({}, "has format version None"),
        ({"version": 4, "run": "a"}, "is damaged: it lacks config, criterion_state"),
    ],
)
def test_a_checkpoint_of_another_version(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    torch.save({"format": "handclip-checkpoint", **content}, tmp_path / "run.pth")
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.load(tmp_path / "run.pth")


WEIGHT = "encoder.tower.ln_post.weight"
CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a bit of a weight": lambda content: content["model_state"][WEIGHT].view(torch.int32)[3].bitwise_xor_(1),
    "a bit of a loss": lambda content: (
        content["criterion_state"]["by_embedding.x"].view(torch.int32)[0].bitwise_xor_(1)
    ),
    "the shape of a weight": lambda content: content["model_state"][WEIGHT].resize_(2, 1),
    "the name of a weight": lambda content: content["model_state"].update(other=content["model_state"].pop(WEIGHT)),
    "the type of a weight": lambda content: content["model_state"].update({WEIGHT: "text"}),
    "a state": lambda content: content.update(model_state=None),
    "the preprocessing": lambda content: content["preprocessing"].update(height=33),
    "the identities": lambda content: content["identities"].reverse(),
    "a metric": lambda content: content["metrics"].update(val_map=0.75),
    "the hash": lambda content: content.update(sha256="0" * 64),
    "the hash's presence": lambda content: content.pop("sha256"),
}


@pytest.mark.promise("damaged-checkpoint")
@pytest.mark.parametrize("what", CHANGES)
def test_a_checkpoint_of_which_anything_has_changed_is_found(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run.pth"
    make()[1].save(path)
    content = torch.load(path, weights_only=True)
    CHANGES[what](content)
    torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=r"run\.pth: is damaged or was changed: its content does not have the SHA"
    ):
        Checkpoint.load(path)


@pytest.mark.promise("damaged-checkpoint")
@pytest.mark.parametrize(("damaged", "other", "epoch"), [("run", "run_last", "last"), ("run_last", "run", "best")])
def test_a_damaged_checkpoint_names_the_other_of_its_run(tmp_path: Path, damaged: str, other: str, epoch: str) -> None:
    make()[1].save(tmp_path / f"{damaged}.pth")
    content = (tmp_path / f"{damaged}.pth").read_bytes()
    (tmp_path / f"{damaged}.pth").write_bytes(content[: len(content) // 2])
    offered = f"The model of its run's {epoch} epoch is in {tmp_path / other}.pth."
    for is_there in (False, True):
        with pytest.raises(CheckpointError) as caught:
            Checkpoint.load(tmp_path / f"{damaged}.pth")
        assert (offered in str(caught.value)) is is_there
        assert "train again" in str(caught.value)
        make()[1].save(tmp_path / f"{other}.pth")


def test_a_folder_or_text_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        Checkpoint.load(tmp_path)
    (tmp_path / "a.pth").write_text("hello")
    with pytest.raises(CheckpointError, match=r"is not a weights file: it is text .*'hello'.*train again"):
        Checkpoint.load(tmp_path / "a.pth")


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    _, checkpoint = make()
    (tmp_path / "file").write_text("")
    with pytest.raises(HandCLIPError, match="cannot write"):
        checkpoint.save(tmp_path / "file" / "run.pth")
    (tmp_path / "run.pth").mkdir()
    with pytest.raises(HandCLIPError, match="cannot write"):
        checkpoint.save(tmp_path / "run.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run.pth"]


def test_a_handclip_checkpoint_is_no_pretrained_file(tmp_path: Path) -> None:
    make()[1].save(tmp_path / "run.pth")
    with pytest.raises(CheckpointError, match="resume_from"):
        build_model(parse_config({**BASE, "pretrained": str(tmp_path / "run.pth")}, "test"))


@pytest.mark.promise("pipe-for-file")
def test_a_pipe_in_place_of_a_checkpoint_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.pth")
    message = r"run\.pth: cannot be read: it is no file but a pipe, a socket or a device"
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.load(tmp_path / "run.pth")
