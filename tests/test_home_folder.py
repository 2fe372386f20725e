"""`~` is the home folder in every path that a config, a study or an option holds."""

import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from command_line import Handclip

from handclip import cli
from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import load_config, parse_config
from handclip.config.section import ConfigSection
from handclip.config.study import StudyConfig, load_study, plan_experiments
from handclip.errors import ConfigError
from handclip.files import at_home

ROOT = Path(__file__).parents[1]
SCRIPTS = [ROOT / "run_eval_clip.py", *(ROOT / "experiments").rglob("*.py")]
BASE = {"experiment": "a", "model": "vitb16", "dataset": "11k"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home folder, which is not where they work."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def mentions_path(hint: Any) -> bool:
    return hint is Path or any(mentions_path(part) for part in get_args(hint))


def sections(kind: type[ConfigSection] = ConfigSection) -> Iterator[type[ConfigSection]]:
    for one in kind.__subclasses__():
        yield from (one, *sections(one))


PATHS = [
    (section, key)
    for section in sections()
    for key, field in section.model_fields.items()
    if mentions_path(field.annotation)
]
EXPERIMENT = [key for section, key in PATHS if section is ExperimentConfig]


def test_the_paths_that_a_config_holds_are_these() -> None:
    assert {"data_root", "manifest", "resume_from", "checkpoint", "save_dir"} <= set(EXPERIMENT)
    others = [(section, key) for section, key in PATHS if not issubclass(ExperimentConfig, section)]
    assert others == [(StudyConfig, "runs")]  # what another holds needs a line in a test below


@pytest.mark.parametrize("key", [*EXPERIMENT, "pretrained"])
def test_every_path_of_an_experiment_begins_at_home(key: str, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    for line, overrides in ((f"{key}: ~/x/y.pth\n", []), ("", [f"{key}=~/x/y.pth"])):
        path.write_text(f"experiment: a\nmodel: vitb16\ndataset: 11k\n{line}")
        config = load_config(path, overrides)
        assert str(getattr(config, key)) == str(home / "x" / "y.pth")
        assert parse_config(config.to_dict(), "test") == config


def test_the_home_folders_of_others() -> None:
    import pwd

    root = pwd.getpwuid(0)
    own = {"data_root": f"~{root.pw_name}/hands", "pretrained": f"~{root.pw_name}/w.pt"}
    config = parse_config({**BASE, **own}, "test")
    assert (config.data_root, config.pretrained) == (Path(root.pw_dir) / "hands", f"{root.pw_dir}/w.pt")
    for key in ("data_root", "save_dir", "pretrained"):
        with pytest.raises(
            ConfigError, match=rf"^a.yml: {key}: ~nobody_of_this/x: there is no home folder ~nobody_of_"
        ):
            parse_config({**BASE, key: "~nobody_of_this/x"}, "a.yml")
    for path in ("a/~/b", "./~x", "x~", "/~", "{model}/~"):  # part of a name
        assert at_home(path) == path


def test_every_path_of_a_study_begins_at_home(home: Path, tmp_path: Path) -> None:
    (home / "own.yml").write_text("experiment: own\nmodel: rn50\ndataset: hd\n")
    path = tmp_path / "study.yml"
    path.write_text(
        "study: a\nmodels: {vitb16: {pretrained: ~/w.pt}}\ndata: [{dataset: 11k, data_root: ~/hands}]\n"
        "stage0: {experiment: a}\nruns: [~/own.yml]\n"
    )
    planned = [one.config for one in plan_experiments(load_study(path), Path("out"))]
    assert [config.experiment for config in planned] == ["a", "own"]
    assert [config.data_root for config in planned] == [home / "hands"] * 2
    assert planned[0].pretrained == str(home / "w.pt")
    [again] = plan_experiments(load_study(path, ["runs=[]", "data=[{dataset: hd, data_root: ~/HD}]"]), Path("out"))
    assert again.config.data_root == home / "HD"


def functions() -> Iterator[Any]:
    for program in (cli.app, cli.cache):
        yield from (command.callback for command in program.registered_commands)
    for script in SCRIPTS:
        spec = importlib.util.spec_from_file_location(script.stem, script)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        cli.Program().command()(module.main)
        assert "app = Program(" in script.read_text(encoding="utf-8")
        yield module.main


def test_every_path_of_the_command_line_begins_at_home(home: Path) -> None:
    found = 0
    for function in functions():
        hints = get_type_hints(function, include_extras=True)
        for name, parameter in inspect.signature(function).parameters.items():
            if mentions_path(hints[name]):
                [info] = get_args(hints[name])[1:]
                assert info.parser is not None, f"{function.__name__}: {name} of {parameter} does not understand ~"
                assert info.parser("~/x") == home / "x"
                found += 1
    assert found >= 20


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "~/a.yml"], "{home}/a.yml: no such file"),
        (["train", "a.yml", "--set", "data_root=~nobody_of_this_name"], "there is no home folder ~nobody_of_this_name"),
        (["compare", "~/runs", "--out=~/comparison"], "{home}/runs: no such file or folder"),
        (["audit", "~/runs", "~/others"], "{home}/runs: no such file or folder"),
        (["prepare", "--check=~/m.json"], "{home}/m.json"),
        (["compare", "runs", "--out=~nobody_of_this_name/x"], "there is no home folder"),
    ],
)
def test_the_command_line_begins_at_home(
    arguments: list[str],
    expected: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.yml").write_text("experiment: a\nmodel: vitb16\ndataset: 11k\n")
    answer = Handclip(monkeypatch, capsys)(*arguments)
    assert answer.code and expected.format(home=home) in " ".join(answer.err.replace("│", " ").split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.yml", "home"]
