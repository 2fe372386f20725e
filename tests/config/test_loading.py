from pathlib import Path
from typing import Any

import pytest
from config_strategies import configs
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import load_config, on_other_data, parse_config
from handclip.config.naming import run_name
from handclip.config.yaml_text import dump_yaml, load_yaml
from handclip.errors import ConfigError

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(path for path in (ROOT / "configs").rglob("*.yml") if path.parent.name != "studies")
STAGE1 = ROOT / "configs" / "train_stage1_frozen_text" / "train_vitb16_11k_dorsal_r.yml"

SEED_EXAMPLE = """\
experiment: stage2_vitb16_11k_dorsal_r_ce_triplet_center
model: vitb16
dataset: 11k
aspect: dorsal_r
variant: finetuned

resume_from: saved_models/stage1_frozen_text_vitb16_11k_dorsal_r_e30_lr0001_bs32_losscross_entropy.pth

batch_size: 32
epochs: 30
lr: 0.00005

losses:
  - type: cross_entropy
  - type: triplet
  - type: center

output_dir: train_logs/
save_dir: saved_models/
"""
"""The experiment file that HandCLIP's first description shows, word for word."""

KEYS = ExperimentConfig.model_fields
MINIMUM = "experiment: a\nmodel: vitb16\ndataset: 11k\n"


def load(tmp_path: Path, text: str | bytes, *overrides: str) -> ExperimentConfig:
    path = tmp_path / "file.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path, overrides)


def error_of(tmp_path: Path, text: str | bytes, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_first_description_loads_word_for_word(tmp_path: Path) -> None:
    config = load(tmp_path, SEED_EXAMPLE)
    assert config.lr == 5e-5
    assert [loss.type for loss in config.losses] == ["cross_entropy", "triplet", "center"]
    assert (config.model, config.dataset, config.aspect) == ("vitb16", "11k", "dorsal_r")
    assert config.resume_from is not None and config.resume_from.name.startswith("stage1_frozen_text_vitb16")
    assert config.output_dir == Path("train_logs") and config.uses_pk_sampling


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.stem))
def test_every_shipped_config_loads(path: Path) -> None:
    config = load_config(path)
    assert path.stem.startswith(f"{'eval' if config.variant == 'baseline' else 'train'}_{config.model}_11k_dorsal_r")


@pytest.mark.parametrize("text", ["5e-5", "5.0e-5", "0.00005", "'5e-5'", "5E-5", "+5e-5"])
def test_d53_an_exponent_is_a_number(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, f"{MINIMUM}lr: {text}\n").lr == 5e-5
    assert load(tmp_path, MINIMUM, f"lr={text}").lr == 5e-5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # Unknown, misspelt, misplaced (D-55)
        ("epchs: 3", "unknown key 'epchs'. Did you mean 'epochs'?"),
        ("freeze_text_encoder: true", "unknown key 'freeze_text_encoder'."),
        ("margin: 0.3", "unknown key 'margin': it is an option of a loss"),
        ("label_smoothing: 0.1", "put it under `losses: - type: cross_entropy`"),
        ("augmentation: {flp: 0.5}", "unknown key 'augmentation.flp'. Did you mean 'flip'?"),
        ("rerank: {k3: 4}", "unknown key 'rerank.k3'. Known: k1, k2, lambda."),
        ("rerank: {lambda_: 0.4}", "unknown key 'rerank.lambda_'. Did you mean 'lambda'?"),
        ("lambda: 0.4", "unknown key 'lambda': it is an option of rerank; put it under `rerank:`"),
        ("rerank: default", "rerank: input should be a valid mapping"),
        ("rerank: {lambda: true}", "rerank: lambda: cannot be true"),
        ("rerank: {lambda: 1.5}", "rerank.lambda: input should be less than or equal to 1"),
        ("rerank: {k1: 0}", "rerank.k1: input should be greater than 0"),
        ("augmentation: {seed: 1}", "'seed' belongs at the top level"),
        ("losses: [{type: triplet, epochs: 3}]", "unknown key 'losses[0].epochs': 'epochs' belongs at the top level"),
        (
            "losses: [{type: cross_entropy}, {type: triplet, margn: 1}]",
            "'losses[1].margn' of loss 'triplet'. Did you mean 'margin'?",
        ),
        ("losses: [{type: triplet, triplet: 1}]", "unknown key 'losses[0].triplet' of loss 'triplet'."),
        # Losses
        ("losses: [{type: tripplet}]", "losses[0].type: there is no loss 'tripplet'. Did you mean 'triplet'?"),
        ("losses: [{type: softmax}]", "Did you mean 'cross_entropy'?"),
        ("losses: [{margin: 0.3}]", "losses[0]: needs a type"),
        ("losses: [triplet]", "losses[0]: needs a type, such as {type: triplet} (got 'triplet')"),
        ("losses: []", "losses: the list is empty"),
        ("losses:", "losses: should be a list, such as [{type: cross_entropy}, {type: triplet}] (got None)"),
        ("losses: [{type: triplet, margin: wide}]", "losses[0].margin: input should be a valid number"),
        ("losses: [{type: triplet, margin: true}]", "losses[0]: margin: cannot be true"),
        ("losses: [{type: arcface, margin: 28.6}]", "losses[0].margin: the margin is in radians"),
        # Types
        ("epochs: 3.5", "epochs: input should be a valid integer"),
        ("epochs: many", "epochs: input should be a valid integer"),
        ("epochs: true", "epochs: cannot be true"),
        ("lr: fast", "lr: input should be a valid number"),
        ("lr:", "lr: input should be a valid number (got None)"),
        ("augmentation: {rotation: true}", "augmentation: rotation: cannot be true"),
        ("augmentation:", "augmentation: input should be a valid mapping"),
        ("neck: 3", "neck: input should be 'none', 'bnneck' or 'hidden'"),
        ("neck: bneck", "'bnneck' or 'hidden' (got 'bneck'). Did you mean 'bnneck'?"),
        ("optimizer: AdamX", "(got 'AdamX'). Did you mean 'adam'?"),
        ("flip_settings: [none, summ]", "flip_settings[1]: input should be 'none' or 'sum' (got 'summ'). Did you"),
        ("aspect: dorsal_x", "(got 'dorsal_x'). Did you mean 'dorsal_r'?"),
        ("quick_gelu: maybe", "quick_gelu: should be true, false or auto (got 'maybe')"),
        ("input_size: [1, 2, 3]", "input_size: should be a number of pixels above 0, or [height, width]"),
        ("num_workers: -1", "num_workers: should be auto, or a number from 0 up (got -1)"),
        ("milestones: 20", "milestones: input should be a valid list"),
        ("flip_settings: []", "flip_settings: the list is empty"),
        ("gallery_protocols: [all]", "gallery_protocols[0]: input should be 'gallery' or 'gallery_all'"),
        # Ranges
        ("epochs: 0", "epochs: input should be greater than 0"),
        ("augmentation: {flip: 1.5}", "augmentation.flip: input should be less than or equal to 1"),
        ("freeze: all_but_last_0", "freeze: should be none, all, or all_but_last_2, say"),
        ("device: gpu", "device: should be auto, cpu"),
        ("variant: fine-tuned", "variant: input should be 'baseline' or 'finetuned'"),
        ("resume_from: '{stage}.pth'", "a path may hold {model}, {dataset} and {aspect}, nothing else in braces"),
        ("resume_from: '{model.__class__}.pth'", "nothing else in braces"),
    ],
)
def test_d55_a_wrong_line_is_explained(tmp_path: Path, line: str, message: str) -> None:
    text = error_of(tmp_path, f"{MINIMUM}{line}\n")
    assert message in text
    (only,) = text.splitlines()
    assert only.startswith(f"{tmp_path / 'file.yml'}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "should map keys to values"),
        ("# only a comment", "should map keys to values"),
        ("- experiment: a", "should map keys to values"),
        ("vitb16", "should map keys to values"),
        ("1: 2", "should map keys to values"),
        ("a: b: c", "is not YAML that can be read"),
        ("a: [", "is not YAML that can be read"),
        ("a: 1\na: 2", "key 'a' is given twice"),
        ("losses:\n  - type: triplet\n    margin: 1\n    margin: 2", "key 'margin' is given twice"),
        ("model: vitb16\ndataset: 11k", "experiment: is required"),
    ],
)
def test_a_file_that_is_no_experiment_is_explained(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in error_of(tmp_path, text)


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    text = error_of(tmp_path, f"{MINIMUM}epchs: 3\nlr: fast\nlosses: [{{type: tripplet}}]\n")
    assert len(text.splitlines()) == 3


def test_merge_keys_work(tmp_path: Path) -> None:
    config = load(tmp_path, f"{MINIMUM}augmentation:\n  <<: {{flip: 0.5, erasing: 0.1}}\n  erasing: 0.2\n")
    assert (config.augmentation.flip, config.augmentation.erasing) == (0.5, 0.2)


def test_a_missing_file_suggests_the_nearest(tmp_path: Path) -> None:
    for path, said in (
        (STAGE1.with_name("train_vitb16_11k_dorsalr.yml"), r"Did you mean '.*train_vitb16_11k_dorsal_r\.yml'"),
        (tmp_path / "a.yml", r"There is no \*\.yml in"),
        (tmp_path / "no" / "folder.yml", ""),
    ):
        with pytest.raises(ConfigError, match=rf"no such file\. {said}"):
            load_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_overrides_replace_and_reach_into_sections() -> None:
    config = load_config(STAGE1, ["aspect=palmar_l", "augmentation.flip=0.5", "losses=[{type: triplet}]", "seed=1"])
    assert (config.aspect, config.augmentation.flip, config.seed) == ("palmar_l", 0.5, 1)
    assert [loss.type for loss in config.losses] == ["triplet"]
    assert load_config(STAGE1, ["seed=1", "seed=2"]).seed == 2


IN_11K = {"dataset": "11k", "aspect": "palmar_l", "data_root": "hands", "manifest": "m.json", "seed": 1}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, IN_11K),
        ({"aspect": "all"}, {**IN_11K, "aspect": "all"}),
        ({"dataset": "11K", "manifest": "n.json"}, {**IN_11K, "dataset": "11K", "manifest": "n.json"}),
        ({"dataset": "HD"}, {"dataset": "HD", "seed": 1}),
        ({"dataset": "hd", "data_root": "HD", "seed": 2}, {"dataset": "hd", "data_root": "HD", "seed": 2}),
        ({"dataset": "hd", "aspect": "palmar_r"}, {"dataset": "hd", "aspect": "palmar_r", "seed": 1}),
        ({"dataset": "synthetic"}, {"dataset": "synthetic", "aspect": "palmar_l", "seed": 1}),
    ],
)
def test_what_belongs_to_the_former_data_is_dropped(data: dict[str, Any], expected: dict[str, Any]) -> None:
    assert on_other_data(IN_11K, data) == expected


def test_values_without_a_data_set_keep_what_they_say_of_it() -> None:
    values = {"manifest": "m", "aspect": "dorsal"}
    assert on_other_data(values, {"dataset": "hd"}) == {**values, "dataset": "hd"}


def test_an_override_of_the_data_set_leaves_the_file_s_data_behind(tmp_path: Path) -> None:
    text = f"{MINIMUM}aspect: palmar_l\ndata_root: hands\nmanifest: m.json\n"
    config = load(tmp_path, text, "dataset=hd")
    assert (config.dataset, config.aspect, config.data_root, config.manifest) == ("hd", "dorsal", None, None)
    # In whichever order they are given.
    for overrides in (["dataset=hd", "manifest=hd.json"], ["manifest=hd.json", "dataset=hd"]):
        assert load(tmp_path, text, *overrides).manifest == Path("hd.json")
    assert load(tmp_path, text, "dataset=11k").manifest == Path("m.json")
    assert load(tmp_path, text.replace("11k", "hd").replace("palmar_l", "dorsal"), "dataset=11k").aspect == "dorsal_r"
    assert "aspect: hd has the aspect dorsal only" in error_of(tmp_path, text, "dataset=hd", "aspect=palmar_l")
    # One file that contradicts itself is a mistake, not a change of data.
    assert "aspect: hd has the aspect dorsal only" in error_of(tmp_path, text.replace("11k", "hd"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "should be key=value"),
        ("=3", "should be key=value"),
        ("sed=3", "unknown key 'sed'. Did you mean 'seed'?"),
        ("augmentation.flp=0.5", "unknown key 'augmentation.flp'. Did you mean 'flip'?"),
        ("losses.0.margin=1", "'losses' is not a section"),
        ("lr=[", "is not YAML that can be read"),
        ("lr=2020-13-45", "lr: input should be a valid number"),
        ("lr=", "lr: input should be a valid number"),
        ("lr.x=1", "'lr' is not a section"),
        (".=1", "unknown key ''"),
        ("epochs=ten", "epochs: input should be a valid integer"),
    ],
)
def test_a_wrong_override_is_explained(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(STAGE1, [override])
    assert message in str(caught.value)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(configs())
def test_a_resolved_config_reads_back_as_itself(config: ExperimentConfig) -> None:
    assert parse_config(config.to_dict(), "test") == config
    assert parse_config(load_yaml(dump_yaml(config.to_dict())), "test") == config


def test_ce_is_understood_for_cross_entropy(tmp_path: Path) -> None:
    short = "losses: [{type: ce, label_smoothing: 0.1}, {type: triplet}]"
    long = load(tmp_path, MINIMUM + short.replace("ce,", "cross_entropy,"))
    assert load(tmp_path, MINIMUM + short) == load(tmp_path, MINIMUM, short.replace(": ", "=", 1)) == long
    assert run_name(load(tmp_path, MINIMUM + short)) == run_name(long)
    assert long.to_dict()["losses"][0]["type"] == "cross_entropy"
    assert "unknown key 'losses[0].margin'" in error_of(tmp_path, f"{MINIMUM}losses: [{{type: ce, margin: 1}}]")


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    text=st.one_of(
        st.text(max_size=40),
        st.text("ab:-[]{}&*!|>'\"#%@,? \n\t0123.", max_size=60),
        st.builds(
            lambda start, cut, new: SEED_EXAMPLE[:start] + new + SEED_EXAMPLE[start + cut :],
            st.integers(0, len(SEED_EXAMPLE)),
            st.integers(0, 20),
            st.text(max_size=10),
        ),
    )
)
def test_garbage_text_is_a_config_error_and_nothing_else(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.yml"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        load_config(path)
    except ConfigError as error:
        assert str(error).startswith(f"{path}: ")


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    override=st.one_of(
        st.text(max_size=30),
        st.builds("{}={}".format, st.sampled_from(sorted(ExperimentConfig.model_fields)), st.text(max_size=20)),
    )
)
def test_a_garbage_override_is_a_config_error_and_nothing_else(override: str) -> None:
    try:
        load_config(STAGE1, [override])
    except ConfigError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("rerank: none", None),
        ("rerank:", None),
        ("rerank: {}", {"k1": 20, "k2": 6, "lambda": 0.3}),
        ("rerank: {k1: 10, lambda: 0}", {"k1": 10, "k2": 6, "lambda": 0.0}),
    ],
)
def test_reranking_is_off_or_a_section(text: str, expected: dict[str, float] | None, tmp_path: Path) -> None:
    config = load(tmp_path, f"{MINIMUM}{text}\n")
    assert config.to_dict()["rerank"] == expected
    assert parse_config(config.to_dict(), "test") == config
