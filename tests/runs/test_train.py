import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_study import (
    LOSSES,
    load_manifest,
    loss_columns,
    read_table,
    same_weights,
    tiny_config,
    weights,
)

from handclip.datasets.pixels import PixelReader
from handclip.errors import ConfigError, DataError, TrainingError
from handclip.loss.center_loss import CenterLoss
from handclip.loss.triplet_loss import TripletLoss
from handclip.models.builder import model_from_checkpoint
from handclip.models.checkpoint import Checkpoint
from handclip.models.embedding_model import EmbeddingModel
from handclip.runs.result import TrainingResult
from handclip.runs.train import train
from handclip.training.loop import fit
from handclip.training.state import TrainState
from handclip.training.step import FiniteCheck, Objective, Step


@pytest.fixture
def scripted_validation(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace validation by given values of val_map; collects the model's weights at each validation."""

    def script(*values: float) -> list[dict[str, torch.Tensor]]:
        states: list[dict[str, torch.Tensor]] = []

        def validate(model: EmbeddingModel, *images: Any, **options: Any) -> dict[str, float]:
            states.append({key: value.clone() for key, value in model.state_dict().items()})
            return {"val_rank1": 0.0, "val_rank5": 1.0, "val_rank10": 1.0, "val_map": values[len(states) - 1]}

        monkeypatch.setattr("handclip.runs.train.validate", validate)
        return states

    return script


@pytest.fixture
def before_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Objective], None]], None]:
    """Look at what is trained before its first step."""

    def look(then: Callable[[Objective], None]) -> None:
        def looked_at(state: TrainState, batches: Any, step: Step, *rest: Any) -> None:
            then(step.objective)
            fit(state, batches, step, *rest)

        monkeypatch.setattr("handclip.runs.train.fit", looked_at)

    return look


def model_state(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model_state"]
    return state


def test_a_run_writes_its_files(manifests: Path, here: Path) -> None:
    config = tiny_config(manifests, losses=LOSSES["ce_triplet_center"])
    result = train(config)
    folder = here / "train_logs" / result.run
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    events = {name for name in written if name.startswith("tensorboard/events.out.tfevents")}
    assert len(events) == 1
    assert {"config.yml", "environment.json", "metrics.csv", "train.log", "result.json"} < written
    assert sorted(path.name for path in (here / "saved_models").iterdir()) == [
        f"{result.run}.pth",
        f"{result.run}_last.pth",
    ]
    assert not list(here.rglob("*.part"))

    assert yaml.safe_load((folder / "config.yml").read_text()) == config.to_dict()
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["device"] == "cpu"
    assert environment["libraries"]["torch"] == torch.__version__
    recorded = json.loads((folder / "result.json").read_text())
    assert (recorded["run"], recorded["epochs"], recorded["finished"]) == (result.run, 2, True)
    assert recorded["images_per_second"] > 0

    columns = list(read_table(folder / "metrics.csv")[0])
    losses = ["loss_total", "loss_cross_entropy", "loss_triplet", "loss_center"]
    validation = ["val_rank1", "val_rank5", "val_rank10", "val_map", "validation_images"]
    rest = ["images_per_second", "seconds", "peak_memory_mib"]
    assert columns == ["epoch", *losses, "lr_encoder", "lr_new", *validation, *rest]


def test_d45_validation_metrics_are_ordered(stage1: TrainingResult) -> None:
    for row in read_table(stage1.folder / "metrics.csv"):
        rank1, rank5, rank10 = (float(row[f"val_rank{k}"]) for k in (1, 5, 10))
        assert 0 <= rank1 <= rank5 <= rank10 <= 1
        assert rank1 <= float(row["val_map"]) <= 1


def test_checkpoints_describe_themselves(stage1: TrainingResult, manifests: Path) -> None:
    for path in (stage1.checkpoint, stage1.last_checkpoint):
        loaded = torch.load(path, weights_only=True)
        assert loaded["run"] == stage1.run
        assert loaded["config"]["model"] == "vit_small"
        assert loaded["preprocessing"]["height"] == 32
        assert loaded["manifest_sha256"] == load_manifest(manifests).sha256
        assert loaded["identities"] == [f"dorsal_r/{number:07}" for number in range(1, 7)]
        assert 0 <= loaded["metrics"]["val_map"] <= 1
        assert all(value.dtype != torch.bfloat16 for value in loaded["model_state"].values())
    assert Checkpoint.load(stage1.checkpoint).epoch == stage1.best_epoch
    assert Checkpoint.load(stage1.last_checkpoint).epoch == 2


def test_d63_the_log_has_one_line_an_epoch(stage1: TrainingResult) -> None:
    lines = (stage1.folder / "train.log").read_text().splitlines()
    assert sum(": total" in line for line in lines) == 2
    assert len(lines) < 10
    assert "DEBUG" not in "".join(lines)


def test_d20_stage_2_starts_from_the_features_of_stage_1(
    manifests: Path, here: Path, stage1: TrainingResult, before_training: Any
) -> None:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    at_step_0: dict[str, Any] = {}

    def look(objective: Objective) -> None:
        with torch.no_grad():
            at_step_0["features"] = objective.model.eval().embed(images)
        objective.model.train()
        at_step_0["criterion"] = {key: value.clone() for key, value in objective.criterion.state_dict().items()}

    before_training(look)
    config = tiny_config(manifests, resume_from=str(stage1.checkpoint), losses=LOSSES["ce_triplet"], epochs=1)
    result = train(config)

    checkpoint = Checkpoint.load(stage1.checkpoint)
    before = model_from_checkpoint(checkpoint, "stage 1").eval()
    with torch.no_grad():
        assert torch.equal(at_step_0["features"], before.embed(images))
    assert same_weights(at_step_0["criterion"], checkpoint.criterion_state)
    assert not same_weights(model_state(result.checkpoint), checkpoint.model_state)


def test_stage_2_of_other_identities_starts_its_losses_afresh(
    manifests: Path, here: Path, stage1: TrainingResult, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "handclip")
    train(tiny_config(manifests, resume_from=str(stage1.checkpoint), aspect="palmar_l", epochs=1))
    assert "every loss starts afresh" in caplog.text


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("model", ["vit_small", "rn_small"])
def test_d10_trainable_parameters_move_and_frozen_ones_do_not(
    model: str, losses: str, manifests: Path, here: Path, before_training: Any
) -> None:
    before: dict[str, torch.Tensor] = {}
    frozen: set[str] = set()

    def remember(objective: Objective) -> None:
        for name, parameter in objective.named_parameters():
            before[name] = parameter.detach().clone()
            if not parameter.requires_grad:
                frozen.add(name)

    before_training(remember)
    # One batch an epoch: a single step.
    config = tiny_config(
        manifests, model=model, input_size=64, losses=LOSSES[losses], freeze="all_but_last_1", epochs=1, batch_size=12
    )
    result = train(config)
    last = torch.load(result.last_checkpoint, weights_only=True)
    after = {f"model.{k}": v for k, v in last["model_state"].items()}
    after |= {f"criterion.{k}": v for k, v in last["criterion_state"].items()}
    assert frozen
    for name, value in before.items():
        assert torch.equal(after[name], value) == (name in frozen), name


def test_d31_centres_move_and_their_loss_falls(manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start: list[torch.Tensor] = []

    def drawn(self: CenterLoss, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        start.append(self.centers.detach().clone())

    init = CenterLoss.__init__
    monkeypatch.setattr(CenterLoss, "__init__", drawn)
    result = train(tiny_config(manifests, losses=LOSSES["ce_center"], epochs=4))
    logged = [float(row["loss_center"]) for row in read_table(result.folder / "metrics.csv")]
    assert logged[-1] < logged[0] / 2
    centers = [value for key, value in weights(result.last_checkpoint).items() if key.endswith("centers")]
    assert len(centers) == len(start) == 1
    assert (centers[0] - start[0]).norm(dim=1).min() > 0.1


@pytest.fixture
def images_read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the image files that are read during the test."""
    read: set[str] = set()

    def spy(self: PixelReader, path: Path, sha256: str) -> torch.Tensor:
        read.add(path.name)
        return read_pixels(self, path, sha256)

    read_pixels = PixelReader.read
    monkeypatch.setattr(PixelReader, "read", spy)
    return read


def test_d02_training_and_selection_read_images_of_training_identities_only(
    manifests: Path, here: Path, images_read: set[str]
) -> None:
    train(tiny_config(manifests))
    manifest = load_manifest(manifests)
    assert images_read == {manifest.path_of(index).name for index in manifest.train_all}
    assert manifest.identities(manifest.val) <= manifest.identities(manifest.train)


def test_d40_d47_best_differs_from_last_when_last_is_worse_and_of_equals_the_later_is_kept(
    manifests: Path, here: Path, scripted_validation: Any
) -> None:
    states = scripted_validation(0.5, 0.9, 0.9, 0.3)
    result = train(tiny_config(manifests, epochs=4))
    assert result.best_epoch == 3
    assert same_weights(model_state(result.checkpoint), states[2])
    assert same_weights(model_state(result.last_checkpoint), states[3])
    assert not same_weights(states[2], states[3])
    assert Checkpoint.load(result.checkpoint).metrics["val_map"] == 0.9
    assert Checkpoint.load(result.last_checkpoint).metrics["val_map"] == 0.3


def test_train_all_trains_on_validation_images_and_keeps_the_last_epoch(
    manifests: Path, here: Path, images_read: set[str]
) -> None:
    result = train(tiny_config(manifests, train_split="train_all"))
    manifest = load_manifest(manifests)
    assert images_read == {manifest.path_of(index).name for index in manifest.train_all}
    assert result.best_epoch == 2
    assert same_weights(weights(result.checkpoint), weights(result.last_checkpoint))
    assert "val_map" not in read_table(result.folder / "metrics.csv")[0]


def test_a_loss_that_is_not_finite_stops_and_names_step_and_term(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def spoilt(self: TripletLoss, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return compute(self, features, labels) * (float("nan") if calls == 4 else 1)

    compute = TripletLoss.compute
    monkeypatch.setattr(TripletLoss, "compute", spoilt)
    config = tiny_config(manifests, losses=LOSSES["ce_triplet"], epochs=3)
    with pytest.raises(TrainingError, match=r"epoch 2, step 4: triplet is nan"):
        train(config)
    [good] = (here / "saved_models").iterdir()
    assert Checkpoint.load(good).epoch == 1
    assert all(torch.isfinite(value).all() for value in weights(good).values())

    monkeypatch.setattr(TripletLoss, "compute", compute)
    assert train(config, resume=True).epochs == 3


def test_a_step_judged_late_is_judged_before_anything_is_saved(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the last step of an epoch, which no later one of it has judged, has spoilt the weights by then."""
    steps = 0

    def spoilt(self: TripletLoss, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return compute(self, features, labels) * (float("nan") if steps == 4 else 1)

    compute = TripletLoss.compute
    monkeypatch.setattr(TripletLoss, "compute", spoilt)
    monkeypatch.setattr("handclip.training.step.FiniteCheck", lambda one_step_late: FiniteCheck(one_step_late=True))
    config = tiny_config(manifests, losses=LOSSES["ce_triplet"], epochs=3)
    with pytest.raises(TrainingError, match=r"epoch 2, step 4: triplet is nan"):
        train(config)
    assert steps == 4  # two an epoch, and none of the third
    [best] = (here / "saved_models").iterdir()
    assert Checkpoint.load(best).epoch == 1
    assert all(torch.isfinite(value).all() for value in weights(best).values())
    [state] = here.glob("train_logs/*/checkpoints/*.ckpt")
    last = torch.load(state, weights_only=True)
    assert len(last["state"]["history"]) == 1
    assert all(torch.isfinite(value).all() for value in last["objective"].values())


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(
    manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Zero, with an infinite slope.
    monkeypatch.setattr(TripletLoss, "compute", lambda self, features, labels: (features * 0).abs().sqrt().sum())
    for clip in (1.0, 0.0):
        config = tiny_config(manifests, losses=LOSSES["ce_triplet"], gradient_clip=clip)
        with pytest.raises(TrainingError, match=r"step 1: the gradient overflows"):
            train(config)


@pytest.mark.parametrize(("clip", "clipped"), [(0.05, True), (0.0, False)])
def test_d48_the_gradient_is_clipped_before_the_step(
    clip: float, clipped: bool, manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []

    def spy(self: torch.optim.AdamW, *arguments: Any, **options: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        return step(self, *arguments, **options)

    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    train(tiny_config(manifests, gradient_clip=clip, epochs=1))
    assert norms
    assert (max(norms) <= 0.05 * 1.001) == clipped


def test_d17_bfloat16_keeps_float32_weights(manifests: Path, here: Path) -> None:
    result = train(tiny_config(manifests, precision="bfloat16", epochs=1, losses=LOSSES["ce_arcface"]))
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights(result.last_checkpoint).values())
    environment = json.loads((result.folder / "environment.json").read_text())
    assert environment["precision"] == "bfloat16"


def test_both_embeddings_with_a_neck_have_terms_of_their_own(manifests: Path, here: Path) -> None:
    result = train(tiny_config(manifests, embedding="both", neck="bnneck", losses=LOSSES["ce_triplet"], epochs=1))
    [row] = read_table(result.folder / "metrics.csv")
    terms = [
        f"loss_{name}/{term}" for name in ("before_projection", "projected") for term in ("cross_entropy", "triplet")
    ]
    assert set(terms) < row.keys()
    assert sum(float(row[term]) for term in terms) == pytest.approx(float(row["loss_total"]), rel=1e-5)


def test_d61_the_same_seed_gives_the_same_losses_and_weights(
    manifests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    augmentation = {"flip": 0.5, "color_jitter": 0.2, "rotation": 10, "erasing": 0.5, "resize_crop": 1.2}
    runs: dict[str, tuple[list[dict[str, str]], dict[str, torch.Tensor]]] = {}
    for place, changes in {"first": {}, "second": {}, "one worker": {"num_workers": 1}, "other": {"seed": 1}}.items():
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        result = train(tiny_config(manifests, losses=LOSSES["ce_triplet_center"], augmentation=augmentation, **changes))
        runs[place] = (
            loss_columns(tmp_path / place / result.folder / "metrics.csv"),
            weights(tmp_path / place / result.last_checkpoint),
        )
    for place in ("second", "one worker"):
        assert runs[place][0] == runs["first"][0]
        assert same_weights(runs[place][1], runs["first"][1])
    assert runs["other"][0] != runs["first"][0]


def test_a_baseline_is_not_trained(manifests: Path) -> None:
    config = tiny_config(manifests).model_copy(update={"variant": "baseline"})
    with pytest.raises(ConfigError, match="handclip evaluate"):
        train(config)


def test_config_errors_come_before_images_are_read(manifests: Path, here: Path) -> None:
    nowhere = {"manifest": None, "data_root": str(here / "nowhere")}
    with pytest.raises(ConfigError, match=r"no model 'vit_smal'.*vit_small"):
        train(tiny_config(manifests, model="vit_smal", **nowhere))
    with pytest.raises(ConfigError, match="nowhere"):
        train(tiny_config(manifests, **nowhere))
    assert not list(here.iterdir())


def test_fewer_identities_than_a_batch_needs(manifests: Path, here: Path) -> None:
    with pytest.raises(DataError, match=r"a batch needs 8 identities .* but there are 6"):
        train(tiny_config(manifests, batch_size=16, losses=LOSSES["ce_triplet"]))
    assert not (here / "train_logs").exists()


def test_identities_with_fewer_images_than_k_are_reported(
    manifests: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "handclip")
    train(tiny_config(manifests, images_per_identity=4, losses=LOSSES["ce_triplet"], epochs=1))
    assert "6 identities have fewer than 4 images" in caplog.text
