"""Two processes at once: where one writes, the other is told; what they may share ends whole."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Command, Ended, environment
from comparing import differences, half_written
from tiny_study import LOSSES, baseline_values, tiny_values, write_config

from handclip.config.loading import load_config
from handclip.datasets.pixel_cache import PixelCache
from handclip.locks import holding, is_held
from handclip.runs.evaluate import evaluation_folder
from handclip.runs.run_folder import RunFolder


def run(folder: Path, *arguments: str) -> Ended:
    return Command(arguments, folder, environment(folder / "cache")).wait()


def require_told(ended: Ended, folder: str) -> None:
    """It has ended at once, and said who writes to the folder."""
    assert ended.code == 1, ended.printed
    last = ended.printed.splitlines()[-1]
    assert last.startswith(f"Error: {folder} is being written by process "), last
    assert "Traceback" not in ended.printed


def stop_before_the_first_step() -> None:
    """Have this process stop itself in the midst of its training: the other looks meanwhile, however late it comes."""
    from handclip.training.step import Step

    step = Step.__call__

    def stop_and_step(self: Step, batch: Any, number: int) -> Any:
        if number == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        return step(self, batch, number)

    Step.__call__ = stop_and_step  # type: ignore[method-assign]


@pytest.mark.promise("two-processes")
@pytest.mark.slow
def test_two_trainings_of_one_run(manifests: Path, tmp_path: Path) -> None:
    values = tiny_values(manifests, model="resnet_small", losses=LOSSES["ce_center"], epochs=4, neck="bnneck")
    folders = [tmp_path / "alone" / "now", tmp_path / "disturbed" / "now"]
    for folder in folders:
        folder.mkdir(parents=True)
        write_config(folder / "config.yml", values)
    assert run(folders[0], "train", "config.yml").code == 0
    now = folders[1]
    first = Command(["train", "config.yml"], now, environment(now / "cache"), before=stop_before_the_first_step)
    place = now / RunFolder.of(load_config(now / "config.yml")).folder
    while not is_held(place) and first.code() is None:
        time.sleep(0.01)
    first.pause()
    for arguments in (["train", "config.yml"], ["train", "config.yml", "--resume"]):
        second = run(now, *arguments)
        require_told(second, str(place.relative_to(now)))
        assert f"process {first.pid} on " in second.printed
        assert "(handclip train config.yml)" in second.printed
    while first.code() is None:
        first.go_on()
        time.sleep(0.01)
    assert first.code() == 0, first.log.read_text()
    assert differences(folders[0], now) == []
    assert half_written(now) == []


def evaluation(folder: Path, manifests: Path, hands: Path) -> tuple[list[str], str]:
    config = write_config(folder / "config.yml", baseline_values(manifests, model="resnet_small"))
    return ["evaluate", "config.yml"], str(evaluation_folder(load_config(config)))


def study(folder: Path, manifests: Path, hands: Path) -> tuple[list[str], str]:
    keys = baseline_values(manifests)
    values = {
        "study": "tiny",
        "models": {"resnet_small": None},
        "data": [{"dataset": keys.pop("dataset"), "aspects": [keys.pop("aspect")]}],
        "common": {key: value for key, value in keys.items() if key not in ("experiment", "model", "variant")},
        "stage0": {"experiment": "stage0"},
    }
    write_config(folder / "study.yml", values)
    return ["study", "study.yml", "--out", "out"], "out"


def preparation(folder: Path, manifests: Path, hands: Path) -> tuple[list[str], str]:
    return ["prepare", "11k", "--root", str(hands), "--out", "out"], "out"


@pytest.mark.promise("two-processes")
@pytest.mark.parametrize("work", [evaluation, study, preparation])
def test_work_whose_folder_another_process_writes_to_is_told_and_writes_nothing(
    work: Callable[[Path, Path, Path], tuple[list[str], str]], manifests: Path, hands: Path, tmp_path: Path
) -> None:
    arguments, place = work(tmp_path, manifests, hands)
    with holding(tmp_path / place):
        require_told(run(tmp_path, *arguments), place)
        assert not (tmp_path / place).exists()


@pytest.mark.promise("two-processes-sharing")
def test_two_at_once_end_with_what_one_alone_writes(manifests: Path, hands: Path, tmp_path: Path) -> None:
    for name in ("alone", "together"):
        (tmp_path / name / "now").mkdir(parents=True)
    alone, now = tmp_path / "alone" / "now", tmp_path / "together" / "now"
    arguments, place = preparation(alone, manifests, hands)
    assert run(alone, *arguments).code == 0
    both = [Command(arguments, now, environment(now / name)) for name in "ab"]
    for ended in [command.wait() for command in both]:
        if ended.code:
            assert ended.code == 1
            assert f"{place} is being written by" in ended.printed
    assert (alone / place).exists()
    assert differences(alone / place, now / place) == []
    assert half_written(now) == []


@pytest.mark.promise("two-processes-sharing")
def test_two_evaluations_fill_one_pixel_cache(manifests: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "alone"):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name / "config.yml", baseline_values(manifests, model="resnet_small"))
    assert run(tmp_path / "alone", "evaluate", "config.yml").code == 0
    shared = environment(tmp_path / "cache")
    both = [Command(["evaluate", "config.yml"], tmp_path / name, shared) for name in "ab"]
    for ended in [command.wait() for command in both]:
        assert ended.code == 0, ended.printed
    assert differences(tmp_path / "alone" / "cache", tmp_path / "cache") == []
    assert half_written(tmp_path / "cache") == []
    images = PixelCache(tmp_path / "cache" / "handclip" / "pixels", limit_bytes=2**20).images()
    # What is counted may be more than is there, never less: room that a process took and did not use.
    counted = int((tmp_path / "cache" / "handclip" / "pixels" / "bytes").read_text())
    assert counted >= sum(image.bytes for image in images) > 0
    for name in "ab":
        assert differences(tmp_path / "alone" / "eval_logs", tmp_path / name / "eval_logs") == []
