from pathlib import Path
from typing import Any

import pytest
from config_strategies import configs
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import load_config, on_other_data, parse_config, read_yaml
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


def test_every_shipped_config_loads_and_has_a_name_of_its_own() -> None:
    names = set()
    for path in EXPERIMENTS:
        config = load_config(path)
        kind = "eval" if config.variant == "baseline" else "train"
        assert path.stem.startswith(f"{kind}_{config.model}_11k_dorsal_r")
        names.add(run_name(config))
    assert len(names) == len(EXPERIMENTS) >= 14


@pytest.mark.parametrize("text", ["5e-5", "5.0e-5", "0.00005", "'5e-5'", "5E-5", "+5e-5"])
def test_d53_an_exponent_is_a_number(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, f"{MINIMUM}lr: {text}\n").lr == 5e-5
    assert load(tmp_path, MINIMUM, f"lr={text}").lr == 5e-5


MISTAKES = read_yaml(Path(__file__).with_name("mistakes.yml"))["experiments"]


@pytest.mark.promise("yaml-numbers")
@pytest.mark.parametrize(("line", "message"), MISTAKES.items(), ids=MISTAKES)
def test_d55_a_wrong_line_is_explained(tmp_path: Path, line: str, message: str) -> None:
    needed = {"experiment": "a", "model": "vitb16", "dataset": "11k"}
    keys = load_yaml(f"{{{line} }}").keys()
    beside = ", ".join(f"{key}: {value}" for key, value in needed.items() if key not in keys)
    said = error_of(tmp_path, f"{{{beside}, {line} }}")
    assert message in said
    assert said.splitlines() == [said] and said.startswith(f"{tmp_path / 'file.yml'}: ")
    if len(keys) == 1 and ": " in line:
        assert message in error_of(tmp_path, MINIMUM, line.replace(": ", "=", 1))


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
    nowhere = {"manifest": "m", "aspect": "dorsal"}  # which says of no data set, and keeps it
    assert on_other_data(nowhere, {"dataset": "hd"}) == {**nowhere, "dataset": "hd"}


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
        ("losses.0.margin=1", "'losses' is not a section"),
        ("lr=[", "is not YAML that can be read"),
        ("lr=", "lr: input should be a valid number"),
        ("lr.x=1", "'lr' is not a section"),
        (".=1", "unknown key ''"),
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
