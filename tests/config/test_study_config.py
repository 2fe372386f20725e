"""Study files: what they may say, and the experiments that follow."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import read_yaml
from handclip.config.naming import run_name
from handclip.config.study import StudyConfig, load_study, plan_experiments
from handclip.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
OUT = Path("out")
MINIMAL: dict[str, Any] = {
    "study": "small",
    "models": {"vit_small": {"pretrained": "none"}, "rn_small": {"pretrained": "none", "losses": ["ce_triplet"]}},
    "data": [{"dataset": "11k", "aspects": ["dorsal_r", "palmar_l"]}],
    "losses": {"ce": [{"type": "cross_entropy"}], "ce_triplet": [{"type": "cross_entropy"}, {"type": "triplet"}]},
    "common": {"batch_size": 8},
    "stage0": {"experiment": "stage0"},
    "stage1": {"experiment": "stage1", "epochs": 3},
    "stage2": {"experiment": "stage2", "epochs": 2},
}


def study(**changes: Any) -> StudyConfig:
    values = {key: value for key, value in {**MINIMAL, **changes}.items() if value is not None}
    return StudyConfig.model_validate(values)


def plan(some: StudyConfig, **options: Any) -> list[ExperimentConfig]:
    return [experiment.config for experiment in plan_experiments(some, OUT, **options)]


def kinds(planned: list[Any]) -> list[tuple[str, ...]]:
    return [(c.model, c.aspect, c.experiment, "+".join(loss.type for loss in c.losses)) for c in planned]


def test_every_model_on_all_data_through_all_stages() -> None:
    ce, both = "cross_entropy", "cross_entropy+triplet"
    stages = [("stage0", ce), ("stage1", ce), ("stage2", ce), ("stage2", both)]
    of_one_aspect = [("vit_small", *stage) for stage in stages]
    of_one_aspect += [("rn_small", *stage) for stage in stages if stage != ("stage2", ce)]
    assert kinds(plan(study())) == [
        (model, aspect, experiment, losses)
        for aspect in ("dorsal_r", "palmar_l")
        for model, experiment, losses in of_one_aspect
    ]


def test_stage_2_goes_on_from_its_own_stage_1() -> None:
    planned = plan(study(seeds=[0, 3]))
    for number, config in enumerate(planned):
        if config.resume_from is not None:
            stage1 = next(c for c in reversed(planned[:number]) if c.experiment == "stage1")
            assert (stage1.model, stage1.aspect, stage1.seed) == (config.model, config.aspect, config.seed)
            assert config.resume_from == OUT / "saved_models" / f"{run_name(stage1)}.pth"


def test_without_stage_2_the_losses_are_those_of_stage_1() -> None:
    planned = plan(study(stage0=None, stage2=None, models={"vit_small": None}))
    losses = ["cross_entropy", "cross_entropy+triplet"]
    assert [kind[2:] for kind in kinds(planned)] == [("stage1", each) for _ in range(2) for each in losses]


def test_the_more_particular_key_holds() -> None:
    changes: dict[str, Any] = {
        "common": {"batch_size": 8, "lr": 0.1, "epochs": 9, "num_splits": 9},
        "stage1": {"experiment": "stage1", "lr": 0.2, "epochs": 7, "num_splits": 7},
        "models": {"vit_small": {"lr": 0.3, "num_splits": 5}},
        "data": [{"dataset": "11k", "num_splits": 3}],
    }
    [config] = plan(study(**changes, stage0=None, stage2=None, losses=None))
    assert (config.batch_size, config.epochs, config.lr, config.num_splits) == (8, 7, 0.3, 3)


def test_everything_is_written_below_the_studys_folder() -> None:
    for config in plan(study(data=[{"dataset": "synthetic", "aspect": "all"}])):
        for path in (config.output_dir, config.save_dir, config.eval_dir, config.data_root):
            assert path is not None and path.parent == OUT


def test_only_some_models() -> None:
    planned = plan(study(runs=["missing.yml"]), only=["rn_small"])
    assert {config.model for config in planned} == {"rn_small"}
    with pytest.raises(ConfigError, match=r"no model 'rn_smal'\. Did you mean 'rn_small'"):
        plan(study(), only=["rn_smal"])


def test_whole_experiment_files_belong_to_it(tmp_path: Path) -> None:
    values = {"experiment": "own", "model": "rn50", "dataset": "hd", "epochs": 4, "output_dir": "elsewhere"}
    (tmp_path / "own.yml").write_text(yaml.safe_dump(values))
    only_runs = study(stage0=None, stage1=None, stage2=None, runs=[tmp_path / "own.yml"], seeds=[1, 2])
    planned = plan(only_runs)
    assert [(c.model, c.dataset, c.aspect, c.seed, c.epochs) for c in planned] == [
        ("rn50", "11k", aspect, seed, 4) for aspect in ("dorsal_r", "palmar_l") for seed in (1, 2)
    ]
    assert {config.output_dir for config in planned} == {OUT / "train_logs"}


def test_cross_domain_leaves_out_what_was_trained_on() -> None:
    changes = {"evaluate_on": [{"dataset": "11k", "aspects": ["dorsal_r", "palmar_l"]}, {"dataset": "hd"}]}
    some = study(**changes, common={"data_root": "my_hands"}, stage2=None, data=[{"dataset": "11k"}])
    baseline, trained, *_ = plan_experiments(some, OUT)
    assert baseline.other_data == ()
    other_aspect, hd = trained.other_data
    assert (other_aspect.dataset, other_aspect.aspect, other_aspect.data_root) == ("11k", "palmar_l", Path("my_hands"))
    assert (hd.dataset, hd.aspect, hd.data_root) == ("hd", "dorsal", None)
    for other in (other_aspect, hd):
        assert other.checkpoint == OUT / "saved_models" / f"{run_name(trained.config)}.pth"
        assert other.epochs == trained.config.epochs


def test_cross_domain_to_other_places() -> None:
    folders = [{"dataset": "folder", "aspect": "hand", "data_root": root} for root in ("one", "two")]
    one_model = {"models": {"vit_small": None}, "stage0": None, "stage2": None, "losses": None}
    [trained] = plan_experiments(study(data=folders[:1], evaluate_on=folders, **one_model), OUT)
    assert [other.data_root for other in trained.other_data] == [Path("two")]
    common = {"manifest": "m/manifest_{aspect}.json"}
    some = study(common=common, data=[{"dataset": "11k"}], evaluate_on=[{"aspect": "palmar_l"}])
    assert plan_experiments(some, OUT)[1].other_data[0].manifest == Path("m/manifest_palmar_l.json")
    some = study(evaluate_on=[{"dataset": "synthetic", "aspect": "all"}])
    assert plan_experiments(some, OUT)[1].other_data[0].data_root == OUT / "synthetic_hands"


def test_pretrained_baselines_are_evaluated_once_whatever_the_seeds() -> None:
    models = {"vit_small": {"pretrained": "none"}, "vitb16": {"pretrained": "openai"}}
    planned = plan(study(models=models, seeds=[0, 1, 2], data=[{"dataset": "11k"}]))
    assert [c.seed for c in planned if c.experiment == "stage0" and c.model == "vit_small"] == [0, 1, 2]
    assert [c.seed for c in planned if c.experiment == "stage0" and c.model == "vitb16"] == [0]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    models=st.lists(st.sampled_from(["vit_small", "rn_small", "vitb16"]), min_size=1, unique=True),
    aspects=st.lists(st.sampled_from(["dorsal_r", "dorsal_l", "palmar_r", "all"]), min_size=1, unique=True),
    seeds=st.lists(st.integers(0, 9), min_size=1, unique=True),
    names=st.lists(st.sampled_from(["ce", "ce_triplet"]), min_size=1, unique=True),
)
def test_the_plan_is_the_product_of_its_lists(
    models: list[str], aspects: list[str], seeds: list[int], names: list[str]
) -> None:
    some = study(
        models={model: {"pretrained": "none"} for model in models},
        data=[{"dataset": "11k", "aspects": aspects}],
        seeds=seeds,
        losses={name: MINIMAL["losses"][name] for name in names},
    )
    planned = plan(some)
    assert len(planned) == len(models) * len(aspects) * len(seeds) * (2 + len(names))
    assert len({run_name(config) for config in planned}) == len(planned)


MISTAKES = read_yaml(Path(__file__).with_name("mistakes.yml"))["studies"]


@pytest.mark.parametrize(("changes", "message"), MISTAKES.items(), ids=MISTAKES)
def test_what_is_wrong_is_named(changes: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yml"
    values = {**MINIMAL, **yaml.safe_load(f"{{{changes}}}")}
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(ConfigError) as error:
        plan(load_study(path), source=str(path))
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_a_key_changed_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yml"
    path.write_text(yaml.safe_dump(MINIMAL))
    changed = load_study(path, ["stage1.epochs=5", "seeds=[4]", "common.lr=5e-5"])
    assert (changed.stage1, changed.seeds) == ({"experiment": "stage1", "epochs": 5}, [4])
    assert plan(changed)[1].lr == 5e-5
    with pytest.raises(ConfigError, match=r"^--set common\.epohs=1: common\.epohs: unknown key 'epohs'\. Did you mean"):
        load_study(path, ["common.epohs=1"])


@pytest.mark.parametrize("name", ["demo", "real_sample", "loss_variants"])
def test_the_studies_that_come_with_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    path = Path("configs/studies") / f"{name}.yml"
    config = load_study(path)
    planned = plan(config, source=str(path))
    assert config.study == name
    # Equal conditions: whatever is not the architecture's own is the same for every model, in every stage.
    own = {"model", "neck", "pretrained", "resume_from", "losses", "aspect", "dataset"}
    for experiment in ("stage0_baseline", "stage1", "stage2_loss_variants"):
        of_stage = [c for c in planned if c.experiment == experiment]
        assert {c.model for c in of_stage} == set(config.models)
        shared = [{key: value for key, value in c.to_dict().items() if key not in own} for c in of_stage]
        assert all(recipe == shared[0] for recipe in shared)
