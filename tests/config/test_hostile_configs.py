"""Experiment and study files that would take the memory, the time, or run something."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip.config import study as study_module
from handclip.config import yaml_text
from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import load_config, parse_config, read_yaml
from handclip.config.study import StudyConfig, load_study, plan_experiments
from handclip.errors import ConfigError

MINIMUM = "experiment: a\nmodel: vitb16\ndataset: 11k\n"
SYNTAX = "ab:-[]{}&*!|>'\"#%@,?<~ \n\t0123456789.eE_xX+"


def error_of(path: Path, text: str | bytes | None = None, *overrides: str) -> str:
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


def laughs(levels: int, width: int = 9) -> str:
    """A list of lists of lists ..., all the same: ten lines that stand for `width ** levels` values."""
    lines = ["a0: &a0 [ha]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return MINIMUM + "\n".join(lines) + "\n"


def merges(levels: int) -> str:
    """The same by merge keys, which PyYAML copies out while it reads."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, levels)]
    return MINIMUM + "\n".join(lines) + "\n"


@pytest.mark.promise("yaml-bomb")
@pytest.mark.parametrize("bomb", [laughs(10), laughs(400, width=2), merges(10), f"{MINIMUM}x: [{'0,' * 30_000}]"])
def test_a_yaml_bomb_is_refused_in_little_memory(tmp_path: Path, bomb: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = error_of(tmp_path / "bomb.yml", bomb)
    assert "bomb.yml: is not YAML that can be read: there are more than 20,000 values" in message
    assert "counting what aliases (*name) repeat" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_an_alias_of_what_it_stands_in_is_refused(tmp_path: Path) -> None:
    for text in ("losses: &a [*a]", "augmentation: &a {flip: *a}", "&a {b: {c: [*a]}}"):
        assert "an alias stands inside of what it repeats" in error_of(tmp_path / "a.yml", text)


def test_a_few_aliases_and_a_byte_order_mark_are_welcome(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(
        f"\ufeff{MINIMUM}losses: [&t {{type: triplet, margin: 0.3}}, {{<<: *t, margin: 0.5}}]\n"
    )
    assert [loss.model_dump()["margin"] for loss in load_config(tmp_path / "a.yml").losses] == [0.3, 0.5]


@pytest.mark.promise("yaml-bomb")
def test_a_file_of_ten_megabytes_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_text.yaml, "load", lambda *_: pytest.fail("it was parsed"))
    text = MINIMUM + "# x\n" * 2_500_000
    for load in (load_config, load_study, read_yaml):
        (tmp_path / "large.yml").write_text(text)
        with pytest.raises(
            ConfigError, match=r"large\.yml: cannot be read: it has 10,000,0\d\d bytes, more than the 1,000,0"
        ):
            load(tmp_path / "large.yml")


def test_a_path_that_can_be_none_or_a_pipe_is_explained_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yml")
    for name, said in (("pipe.yml", "it is no file but a pipe"), ("a\0b.yml", ""), (1000 * "a", "File name too long")):
        assert f"cannot be read{': ' if said else ''}{said}" in error_of(tmp_path / name)


@pytest.mark.promise("yaml-bomb")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + 1500 * "[", "is nested too deeply"),
        ("".join(f"{' ' * n}a:\n" for n in range(1200)), "is nested too deeply"),
        (f"{MINIMUM}seed: {'1' * 10_000}", "a number has 10,000 digits"),
        (f"{MINIMUM}seed: 0x{'f' * 10_000}", "a number has 10,002 digits"),
        (f"{MINIMUM}seed: 1{':59' * 10_000}", "seed: input should be a valid integer"),
        (f"{MINIMUM}seed: !!int 1{':59' * 10_000}", "a number has 30,001 digits"),
        (f"{MINIMUM}lr: 0.{'1' * 10_000}", "a number has 10,002 digits"),
        (f"{MINIMUM}lr: .inf", "lr: input should be a finite number"),
        (f"{MINIMUM}augmentation: {{flip: .nan}}", "augmentation.flip: input should be a finite number"),
        (f"{MINIMUM}losses: [{{type: triplet, margin: .nan}}]", "losses[0].margin: input should be a finite number"),
        (f"{MINIMUM}x: !!python/object/apply:os.system [touch pwned]", "could not determine a constructor for the tag"),
        (f"{MINIMUM}x: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("? [1, 2]\n: 3", "is not YAML that can be read"),
        (b"experiment: \xe4", "cannot be read as UTF-8 text"),
        ("experiment: a".encode("utf-16"), "cannot be read as UTF-8 text"),
        (b"a: \0", "is not YAML that can be read"),
        ("a: \x1b[2J", "is not YAML that can be read"),
        (f"{MINIMUM}? {'x' * 100_000}\n: 1", "unknown key 'xxx"),
    ],
)
def test_what_no_experiment_needs_is_explained(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in error_of(tmp_path / "a.yml", text)
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("lr=fast", "--set lr=fast: lr: input should be a valid number"),
        ("sed=3", "--set sed=3: unknown key 'sed'. Did you mean 'seed'?"),
        ("augmentation.flp=0.5", "--set augmentation.flp=0.5: unknown key 'augmentation.flp'."),
        ("augmentation.flip=true", "--set augmentation.flip=true: augmentation: flip: cannot be true"),
        ("augmentation={flip: 2}", "--set augmentation={flip: 2}: augmentation.flip: input should be less"),
        ("losses=[{type: tripplet}]", "--set losses=[{type: tripplet}]: losses[0].type: there is no loss"),
        ("losses=[{type: triplet, x: 1}]", "--set losses=[{type: triplet, x: 1}]: unknown key 'losses[0].x'"),
        ("epochs=010", "--set epochs=010: epochs: should be a number in plain digits"),
        ("dataset=hdd", "--set dataset=hdd: dataset: "),
        ("input_size=large", "--set input_size=large: input_size: should be"),
    ],
)
def test_a_mistake_of_the_command_line_is_blamed_on_it(tmp_path: Path, override: str, start: str) -> None:
    message = error_of(
        tmp_path / "a.yml", MINIMUM, "seed=1", override, "epochs=3" if "epochs" not in override else "lr=1"
    )
    assert message.startswith(start)
    assert "a.yml" not in message


def test_a_mistake_of_the_file_is_not_blamed_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    message = error_of(path, f"{MINIMUM}lr: fast\naugmentation: {{flip: 3}}\n", "augmentation.scale=0.5", "lr_=3")
    assert [line.startswith(f"{path}: ") for line in message.splitlines()] == [True, True, False]
    (tmp_path / "study.yml").write_text("study: a\nmodels: {vitb16: }\ndata: [{dataset: hd}]\nstage0: {}\n")
    with pytest.raises(ConfigError, match=r"^--set seeds=\[a\]: seeds\[0\]: "):
        load_study(tmp_path / "study.yml", ["seeds=[a]"])
    with pytest.raises(ConfigError, match=r"^--set stge1\.epochs=3: unknown key 'stge1'\. Did you mean 'stage1'"):
        load_study(tmp_path / "study.yml", ["stge1.epochs=3"])


def test_a_study_of_millions_of_experiments_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "MAX_EXPERIMENTS", 100)
    study = StudyConfig.model_validate(
        {
            "study": "a",
            "models": {f"m{number}": {"model": "vit_small", "lr": 1e-4 * (number + 1)} for number in range(100)},
            "data": [{"dataset": "hd", "data_root": f"d{number}"} for number in range(100)],
            "seeds": list(range(1000)),
            "stage1": {"experiment": "a"},
        }
    )
    with pytest.raises(ConfigError, match="study: is more than 100 experiments; divide it into several studies"):
        plan_experiments(study, tmp_path)


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
    st.sampled_from(
        ["11k", "hd", "triplet", "none", "auto", "all", "{model}", 10**390, "1e999", "a\x00b", "/", "\ud800"]
    ),
)
_ANY = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "margin", "flip", "lambda"]) | _SCALARS, inner, max_size=3)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=8,
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(sorted(ExperimentConfig.model_fields)) | st.text(max_size=8), _ANY, max_size=3))
def test_any_value_of_any_key_gives_an_experiment_or_a_config_error(values: dict[str, Any]) -> None:
    try:
        config = parse_config({"experiment": "a", "model": "vitb16", "dataset": "11k", **values}, "test")
    except ConfigError as error:
        assert str(error).startswith("test: ")
    else:
        assert parse_config(yaml.safe_load(yaml.safe_dump(config.to_dict())), "test") == config


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.sampled_from(sorted(StudyConfig.model_fields)), _ANY)
def test_any_value_of_any_key_gives_a_study_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    values = {"study": "a", "models": {"vitb16": None}, "data": [{"dataset": "hd"}], "stage0": {"experiment": "a"}}
    path = tmp_path_factory.getbasetemp() / "any_study.yml"
    try:
        path.write_text(yaml.safe_dump({**values, key: value}), encoding="utf-8")
    except UnicodeEncodeError:
        return
    try:
        plan_experiments(load_study(path), Path("out"))
    except ConfigError as error:
        assert str(error)
