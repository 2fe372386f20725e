"""What a YAML text means: that of version 1.2, and no number is read as another."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handclip.config.loading import load_config, parse_config
from handclip.config.study import load_study
from handclip.config.yaml_text import dump_yaml, load_yaml
from handclip.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*(ROOT / "configs").rglob("*.yml"), *(ROOT / "handclip").rglob("*.yml")])
MINIMUM = "experiment: a\nmodel: vitb16\ndataset: 11k\n"
STUDY = "study: a\nmodels: {vitb16: }\ndata: [{dataset: hd}]\nstage0: {experiment: a}\n"


# What YAML 1.1 takes for a number, a truth value or a date, and what both take for a text.
TEXTS = ["0123", "010", "-012", "1:30", "1:30.5", "1_000", "1_0.5", "0b11", "-0x1F", "2020_01", "2024-05-01"]
TEXTS += ["2024-13-45", "yes", "No", "on", "OFF", "=", "1.2.3", "e5", "all", "~/data"]
FLOATS = ["1e-4", "5e-5", "1E3", "1e+20", "1.5", ".5", "1.", "1.0e-05"]
"""Of which YAML 1.1 takes the first four for texts."""
OTHERS = [("0", 0), ("-7", -7), ("+7", 7), ("0x1F", 31), ("0o17", 15), ("true", True), ("False", False), ("'7'", "7")]
NOTHING = [("~", None), ("null", None), ("", None)]
INFINITE = [(".inf", float("inf")), ("-.inf", -float("inf"))]


@pytest.mark.promise("yaml-numbers")
@pytest.mark.parametrize(
    ("text", "value"),
    [*zip(TEXTS, TEXTS, strict=True), *zip(FLOATS, map(float, FLOATS), strict=True), *OTHERS, *NOTHING, *INFINITE],
)
def test_a_scalar_means_what_yaml_1_2_says(text: str, value: Any) -> None:
    found = load_yaml(f"key: {text}\n")["key"]
    assert (found, type(found)) == (value, type(value))
    assert load_yaml(f"- {text}\n") == [value] and load_yaml(f"{{a: {text}}}") == {"a": value}


_NUMBERS = st.integers() | st.floats(allow_nan=False)


@settings(derandomize=True, deadline=None, max_examples=500)
@given(_NUMBERS)
@example(1e-05)
@example(1e16)
@example(-0.0)
@example(5e-324)
def test_each_number_that_python_writes_is_read_as_itself(number: float) -> None:
    written = [dump_yaml({"a": number})]
    if number not in (float("inf"), -float("inf")):  # which Python spells in a way of its own
        written += [f"a: {number!r}\n", f"a: {number}\n"]
    for text in written:
        found = load_yaml(text)["a"]
        assert (repr(found), type(found)) == (repr(number), type(number))


@settings(derandomize=True, deadline=None, max_examples=500)
@given(
    st.text("0123456789abeEfFnoxXyY.:_+-~ =<", max_size=8)
    | st.text(st.characters(exclude_categories=("C", "Z")), max_size=8)
)
@example("1e5")
@example("0o17")
@example("010")
@example("yes")
def test_each_text_that_is_written_is_read_as_itself_by_both_versions(text: str) -> None:
    written = dump_yaml([text, {text: text}])
    assert load_yaml(written) == yaml.safe_load(written) == [text, {text: text}]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_file_that_handclip_comes_with_means_anything_else_than_before(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    def as_before(value: Any) -> Any:
        """As YAML 1.1 has it, but for 5e-5, which always became a number in the end."""
        if isinstance(value, dict):
            return {key: as_before(one) for key, one in value.items()}
        if isinstance(value, list):
            return [as_before(one) for one in value]
        return float(value) if isinstance(value, str) and value[:1].isdigit() and "e-" in value else value

    assert load_yaml(text) == as_before(yaml.safe_load(text))


def test_the_published_results_are_read_with_the_others() -> None:
    assert files("handclip.report").joinpath("published.yml") in SHIPPED


@pytest.mark.parametrize("line", ["losses: [{type: triplet, margin: 00.3}]", "epochs: '7'", "lr: '5e-5'"])
def test_a_number_in_plain_digits_may_be_a_text(tmp_path: Path, line: str) -> None:
    path = tmp_path / "file.yml"
    path.write_text(f"{MINIMUM}{line}\n")
    load_config(path)


@pytest.mark.parametrize(
    ("line", "override", "message"),
    [
        ("seeds: [010]", "", "file.yml: seeds: should be a number in plain digits, such as 10 or 8 (got '010')"),
        ("synthetic: {size: 1_60}", "", "file.yml: synthetic: size: should be a number in plain digits, such as 160"),
        ("", "seeds=[1:30]", "--set seeds=[1:30]: seeds: should be a number in plain digits, such as 90"),
    ],
)
def test_study_files_are_read_alike(tmp_path: Path, line: str, override: str, message: str) -> None:
    path = tmp_path / "file.yml"
    path.write_text(f"{STUDY}{line}\n")
    with pytest.raises(ConfigError) as caught:
        load_study(path, [override] if override else [])
    assert message in str(caught.value)


def test_names_and_paths_may_look_like_numbers_of_yaml_1_1(tmp_path: Path) -> None:
    path = tmp_path / "file.yml"
    path.write_text("experiment: 2024-05-01\nmodel: vitb16\ndataset: folder\ndata_root: 0123\nmanifest: 1_000\n")
    config = load_config(path)
    assert (config.experiment, config.data_root, config.manifest) == ("2024-05-01", Path("0123"), Path("1_000"))
    assert parse_config(load_yaml(dump_yaml(config.to_dict())), "test") == config


def test_words_for_yes_and_no_still_answer_what_is_a_question(tmp_path: Path) -> None:
    path = tmp_path / "file.yml"
    path.write_text(f"{MINIMUM}allow_missing: yes\ncompile: off\nquick_gelu: no\n")
    config = load_config(path)
    assert (config.allow_missing, config.compile, config.quick_gelu) == (True, False, False)
