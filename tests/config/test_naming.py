from pathlib import Path
from typing import Any

import pytest
from config_strategies import configs, pairs
from hypothesis import given, settings

from handclip.config.experiment import COMPUTED_KEYS, ExperimentConfig
from handclip.config.loading import load_config, parse_config
from handclip.config.naming import evaluation_name, options_of, run_name
from handclip.files import write_text
from handclip.locks import holding
from handclip.runs.run_folder import RunFolder

CONFIGS = Path(__file__).parents[2] / "configs"
STAGE1 = "stage1_frozen_text_vitb16_11k_dorsal_r_e30_lr0001_bs32_losscross_entropy"
BASE = {"experiment": "a", "model": "vitb16", "dataset": "11k"}


def name(**values: Any) -> str:
    return run_name(parse_config({**BASE, **values}, "test"))


def test_stage1_is_named_as_stage2_expects_it() -> None:
    stage1 = run_name(load_config(CONFIGS / "train_stage1_frozen_text" / "train_vitb16_11k_dorsal_r.yml"))
    assert stage1 == STAGE1
    for path in sorted((CONFIGS / "train_stage2_loss_variants").glob("train_vitb16_*.yml")):
        assert load_config(path).resume_from == Path("saved_models") / f"{stage1}.pth"


def test_other_differences_are_appended_readably() -> None:
    assert name(variant="baseline") == "a_vitb16_11k_dorsal_r"
    assert name(seed=3, freeze="all", neck="bnneck").endswith("_losscross_entropy_freeze-all_neck-bnneck_seed-3")
    assert name(losses=[{"type": "cross_entropy"}, {"type": "triplet"}]).endswith("_losscross_entropy+triplet")


def test_d54_learning_rates_keep_apart() -> None:
    rates = [1e-5, 1e-4, 0.1, 0.01, 1.0, 10.0, 100.0, 5e-5, 0.05, 0.5, 5.0, 0.125, 1.25, 12.5]
    names = {name(lr=rate) for rate in rates}
    assert len(names) == len(rates)
    assert name(lr="5e-5") == name(lr=0.00005)


def test_d54_options_of_a_loss_keep_apart() -> None:
    lists = [
        [{"type": "cross_entropy"}, {"type": "triplet", **options}]
        for options in ({}, {"margin": 0.2}, {"margin": 0.25}, {"weight": 0.2}, {"soft": True}, {"normalize": False})
    ]
    assert len({name(losses=losses) for losses in lists}) == len(lists)
    assert name(losses=[{"type": "triplet", "margin": 0.3}]) == name(losses=[{"type": "triplet"}])


def test_d54_experiment_and_model_cannot_run_into_each_other() -> None:
    """Only CoCa's models end in the name of another."""
    from handclip.models.registry import model_names

    assert name(experiment="a_coca", model="ViT-B-32") != name(model="coca_ViT-B-32")
    names = set(model_names())
    ends = {model: {model[start:] for start, letter in enumerate(model, 1) if letter == "_"} for model in names}
    ambiguous = {model for model in names if ends[model] & names}
    assert ambiguous and all(model.startswith("coca_") for model in ambiguous)


def computed(config: ExperimentConfig) -> dict[str, Any]:
    """What decides the trained model; a checkpoint to start from is known by its name."""
    values = {key: value for key, value in config.to_dict().items() if key in COMPUTED_KEYS}
    if config.resume_from is not None:
        values["resume_from"] = config.resume_from.name
    if config.dataset == "folder":
        values["data_root"] = str(config.data_root)
    return values


@settings(derandomize=True, deadline=None, max_examples=150)
@given(pairs())
def test_d54_names_are_equal_exactly_where_the_computation_is(pair: tuple[ExperimentConfig, ExperimentConfig]) -> None:
    one, other = pair
    assert (run_name(one) == run_name(other)) == (computed(one) == computed(other))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(configs())
def test_d43_names_are_plain_and_stable(config: ExperimentConfig) -> None:
    again = parse_config(config.to_dict(), "test")
    assert run_name(again) == run_name(config)
    assert set(run_name(config)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+.")
    assert len(run_name(config)) < 230


def test_evaluations_of_a_run_keep_apart() -> None:
    run = name(variant="baseline")
    rerank = parse_config({**BASE, "rerank": {"lambda": 0.25}}, "test").rerank
    assert evaluation_name(run) == run == name(variant="baseline", rerank={})
    assert evaluation_name(run, on="hd_dorsal") == f"{run}_on_hd_dorsal"
    assert evaluation_name(run, on="hd_dorsal", rerank=rerank) == f"{run}_on_hd_dorsal_rerank-k1-20-k2-6-lambda-0.25"
    long = {evaluation_name("r" * 230, on=on, rerank=rerank) for on in ("hd_dorsal", "11k_palmar_l")}
    assert len(long) == 2 and max(map(len, long)) <= 240


@pytest.mark.promise("long-run-names")
@pytest.mark.parametrize("length", [149, 150, 151, 160, 175, 300, 5000])
def test_every_file_of_a_run_with_a_long_name_can_be_written(length: int, tmp_path: Path) -> None:
    places = {key: str(tmp_path / key) for key in ("output_dir", "save_dir", "eval_dir")}
    values = {**BASE, "experiment": "a" * length, "seed": 3, "rerank": {}, **places}
    config = parse_config(values, "test")
    files = RunFolder.of(config)
    evaluation = config.eval_dir / evaluation_name(files.run, on="11k_palmar_l_01234567", rerank=config.rerank)
    for file in (files.best, files.last, files.config, evaluation / "metrics.json"):
        write_text(file, "")  # under a longer name first
    for place in (files.best, files.folder, evaluation):
        with holding(place):
            pass


@pytest.mark.promise("long-run-names")
def test_names_that_leave_room_for_their_files_do_not_change() -> None:
    rest = name()[1:]
    longest = 231 - len(rest)
    assert name(experiment="a" * longest) == "a" * longest + rest
    cut = [name(experiment="a" * (longest + more)) for more in (1, 2, 1000)]
    assert {len(one) for one in cut} == {231} and len(set(cut)) == 3
    assert len({name(experiment="a" * 1000, lr=lr) for lr in (0.1, 0.01)}) == 2
    for letters in (100, 120, 121, 200):  # counted in bytes
        assert len(evaluation_name("é" * letters).encode()) <= 240
    assert evaluation_name("é" * 120) == "é" * 120


def options(**values: Any) -> dict[str, Any]:
    return options_of(parse_config({**BASE, **values}, "test").to_dict())


def test_options_are_what_differs_from_the_defaults() -> None:
    assert options() == options(variant="baseline") == {}
    named = {"experiment": "b", "model": "mbanet", "dataset": "HD", "seed": 3, "manifest": "m.json"}
    assert options(**named, save_dir="elsewhere", num_splits=2, rerank={}, device="cpu") == {}
    assert options(neck="hidden", test_feature="after_neck", epochs=6, lr=5e-4, pretrained="none") == {
        "epochs": 6, "lr": 0.0005, "neck": "hidden", "pretrained": "none",
    }  # fmt: skip
    assert options(resume_from="elsewhere/stage1.pth") == {"resume_from": "stage1.pth"}
    assert options(variant="baseline", relative_position="intended") == {"relative_position": "intended"}


def test_losses_are_options_where_one_has_options() -> None:
    assert options(losses=[{"type": "cross_entropy"}, {"type": "triplet", "margin": 0.3}]) == {}
    assert options(losses=[{"type": "cross_entropy"}, {"type": "triplet", "margin": 0.5}]) == {
        "losses": [{"type": "cross_entropy"}, {"type": "triplet", "margin": 0.5}]
    }


@settings(derandomize=True, deadline=None, max_examples=100)
@given(pairs())
def test_options_tell_apart_what_is_computed(pair: tuple[ExperimentConfig, ExperimentConfig]) -> None:
    one, other = (computed(config) for config in pair)
    named = {"experiment", "model", "dataset", "aspect", "variant", "seed", "manifest"}
    differ = {key for key in one if one[key] != other[key]}
    same_types = [loss.type for loss in pair[0].losses] == [loss.type for loss in pair[1].losses]
    if same_types and not differ & named:
        assert (options_of(pair[0].to_dict()) == options_of(pair[1].to_dict())) == (not differ)
