"""A disk that is full, read-only or gone: a clear error, nothing half-written, and afterwards it goes on exactly."""

import inspect
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from commands import Command, environment
from comparing import differences, half_written
from small_disk import Answer, SmallDisk, on_a_small_disk
from tiny_study import LOSSES, baseline_values, tiny_values, write_config

TRAIN = ("train", "config.yml")
EVALUATE = ("evaluate", "config.yml")


@pytest.fixture(scope="module")
def undisturbed(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training and its evaluation, done in `disk/now` as all are; another disk is mounted over it afterwards."""
    place = tmp_path_factory.mktemp("disks")
    now = place / "disk" / "now"
    now.mkdir(parents=True)
    values = tiny_values(manifests, model="resnet_small", losses=LOSSES["ce_triplet_center"], epochs=3, neck="bnneck")
    write_config(now / "config.yml", values)
    for arguments in (TRAIN, EVALUATE):
        ended = Command(arguments, now, environment(place / "cache")).wait()
        assert ended.code == 0, ended.printed
    now.rename(place / "undisturbed")
    return place / "undisturbed"


def on_its_own_disk(test: Callable[..., None]) -> Callable[..., None]:
    """Call a test in a process of its own with a disk of its own, on which the undisturbed work was done."""
    names = [name for name in inspect.signature(test).parameters if name != "disk"]

    def run(undisturbed: Path, manifests: Path, hands: Path) -> None:
        given = {"undisturbed": undisturbed, "manifests": manifests, "hands": hands}
        disk = undisturbed.with_name("disk")
        on_a_small_disk(_inner, disk, test.__name__, *(given[name] for name in names))

    run.inner = test  # type: ignore[attr-defined]
    return run


def _inner(disk: SmallDisk, name: str, *arguments: Path) -> None:
    globals()[name].inner(disk, *arguments)  # a process is told a function by its name


def begin(disk: SmallDisk, undisturbed: Path, *parts: str) -> Path:
    """Enter `now` on the disk, with the config and parts of the undisturbed work."""
    now = disk.folder / "now"
    now.mkdir()
    os.chdir(now)
    shutil.copy(undisturbed / "config.yml", now)
    for part in parts:
        shutil.copytree(undisturbed / part, now / part)
    return now


def require_clear_error(answer: Answer, *words: str) -> None:
    assert answer.code == 1, answer.printed
    last = answer.printed.splitlines()[-1]
    assert last.startswith("Error: "), answer.printed
    for word in words:
        assert word in last, last
    assert "Traceback" not in answer.printed


def go_on(disk: SmallDisk) -> None:
    answer = disk.handclip(*TRAIN, "--resume")
    assert answer.code == 0, answer.printed


def require_same(undisturbed: Path, now: Path, *parts: str) -> None:
    for part in parts or (".",):
        assert differences(undisturbed / part, now / part) == []
    assert half_written(now) == []


def states(now: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in now.glob("train_logs/*/checkpoints/*.ckpt")}


@pytest.mark.promise("disk-full")
@on_its_own_disk
def test_a_disk_that_is_full_at_the_end_of_an_epoch(disk: SmallDisk, undisturbed: Path) -> None:
    now = begin(disk, undisturbed)
    assert disk.handclip(*TRAIN, "--stop-after", 1).code == 0
    good = states(now)
    (state,) = good.values()
    disk.leave(len(state) // 2)
    require_clear_error(disk.handclip(*TRAIN, "--resume"), "MiB are free on this disk", "Make room")
    with patch("handclip.runs.train.check_disk_space"):  # as where others fill the disk later
        require_clear_error(disk.handclip(*TRAIN, "--resume"), "cannot write", "No space left on device")
    assert states(now) == good  # and from it training goes on
    assert half_written(now) == []
    disk.enlarge()
    go_on(disk)
    require_same(undisturbed, now, "train_logs", "saved_models")


@pytest.mark.promise("read-only")
@on_its_own_disk
def test_a_disk_that_has_become_read_only(disk: SmallDisk, undisturbed: Path) -> None:
    now = begin(disk, undisturbed)
    assert disk.handclip(*TRAIN, "--stop-after", 1).code == 0
    disk.make_read_only()
    require_clear_error(disk.handclip(*TRAIN, "--resume"), "cannot write train_logs/", "read-only")
    require_clear_error(disk.handclip(*EVALUATE), "cannot write eval_logs/", "read-only")
    disk.make_writable()
    go_on(disk)
    require_same(undisturbed, now, "train_logs", "saved_models")


@pytest.mark.promise("evaluation-on-read-only-disk", "evaluation-without-log")
@on_its_own_disk
def test_an_evaluation_on_a_read_only_disk_is_shown(disk: SmallDisk, undisturbed: Path) -> None:
    begin(disk, undisturbed, "train_logs", "saved_models", "eval_logs")
    disk.make_read_only()
    answer = disk.handclip(*EVALUATE)
    assert answer.code == 0, answer.printed
    assert "held this evaluation already, whole and as it was written" in answer.printed
    disk.make_writable()
    for log in disk.folder.glob("**/eval.log"):
        log.unlink()
    disk.make_read_only()
    without = disk.handclip(*EVALUATE)
    assert without.code == 0, without.printed
    assert "The log of this evaluation is missing, and cannot be made anew: cannot write" in without.printed
    assert "Average:" in without.printed
    require_clear_error(disk.handclip(*EVALUATE, "--overwrite"), "cannot write eval_logs/", "read-only")


@pytest.mark.promise("clock-set-back")
@on_its_own_disk
def test_a_clock_that_is_set_back(disk: SmallDisk, undisturbed: Path) -> None:
    now = begin(disk, undisturbed)
    for epochs in (1, 2):
        assert disk.handclip(*TRAIN, "--resume", "--stop-after", epochs).code == 0
        # What the first epoch wrote is of the year 2070, what the second wrote of 2040: neither is to decide.
        for path in now.rglob("*"):
            os.utime(path, (4e9 - 1e9 * epochs, 4e9 - 1e9 * epochs))
    go_on(disk)
    require_same(undisturbed, now, "train_logs", "saved_models")


@pytest.mark.promise("disk-full-writing")
@on_its_own_disk
def test_a_disk_that_is_full_when_an_evaluation_is_written(disk: SmallDisk, undisturbed: Path) -> None:
    now = begin(disk, undisturbed, "train_logs", "saved_models")
    for free in (0, 8 * 4096, 16 * 4096):
        disk.leave(free)
        require_clear_error(disk.handclip(*EVALUATE), "cannot write", "No space left on device")
        assert not list(now.glob("eval_logs/*/metrics.json"))
        assert half_written(now) == []
        disk.enlarge()
    assert disk.handclip(*EVALUATE).code == 0
    require_same(undisturbed, now)


@pytest.mark.promise("disk-full-writing")
@on_its_own_disk
def test_a_disk_that_is_full_when_a_comparison_or_a_report_is_written(disk: SmallDisk, undisturbed: Path) -> None:
    from handclip.report import report

    report._SECTIONS = report._SECTIONS[:1]  # the others draw for seconds
    now = begin(disk, undisturbed, "eval_logs")
    disk.leave(4096)
    for command in ("compare", "report"):
        require_clear_error(disk.handclip(command, "eval_logs", "--out", command), "No space left on device")
    assert half_written(now) == []
    assert not list(now.glob("report/report.html"))
    disk.enlarge()
    for command in ("compare", "report"):
        assert disk.handclip(command, "eval_logs", "--out", command).code == 0
    assert half_written(now) == []


@pytest.mark.promise("disk-full-writing")
@on_its_own_disk
def test_a_disk_that_is_full_when_manifests_are_written(disk: SmallDisk, undisturbed: Path, hands: Path) -> None:
    now = begin(disk, undisturbed)
    prepare = ("prepare", "11k", "--root", hands, "--out", "manifests")
    assert disk.handclip(*prepare).code == 0
    whole = {path.name: path.read_bytes() for path in (now / "manifests").iterdir()}
    shutil.rmtree(now / "manifests")
    disk.leave(len(whole["manifest_dorsal_l.json"]) + 4096)
    require_clear_error(disk.handclip(*prepare), "cannot write manifests/", "No space left on device")
    for path in (now / "manifests").iterdir():
        assert path.read_bytes() == whole[path.name]
    disk.enlarge()
    assert disk.handclip(*prepare).code == 0
    assert {path.name: path.read_bytes() for path in (now / "manifests").iterdir()} == whole


@pytest.mark.promise("disk-full-cache")
@on_its_own_disk
def test_a_full_disk_under_the_pixel_cache_costs_time_only(disk: SmallDisk, undisturbed: Path) -> None:
    now = begin(disk, undisturbed, "train_logs", "saved_models")
    os.environ["XDG_CACHE_HOME"] = str(disk.folder / "cache")
    os.chdir(disk.folder.parent)
    work = disk.folder.parent / "elsewhere"
    shutil.copytree(now, work)
    os.chdir(work)
    disk.leave(6 * 4096)
    answer = disk.handclip(*EVALUATE)
    assert answer.code == 0, answer.printed
    assert answer.printed.count("cannot be added to, so images are decoded anew: No space left on device") == 1
    assert half_written(disk.folder) == []
    require_same(undisturbed, work)
    shutil.rmtree(work)


@pytest.mark.promise("vanished-folder")
def test_a_folder_that_is_removed_while_it_is_trained_in(undisturbed: Path, manifests: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((undisturbed / "config.yml").read_text())
    write_config(tmp_path / "config.yml", {**values, "epochs": 200})
    gone = []

    def remove_after_the_first_epoch(seconds: float, changes: int) -> bool:
        if not gone and (found := list(tmp_path.glob("train_logs/*/metrics.csv"))):
            gone.append(found[0].parent)
            while gone[0].exists():  # the training may be adding to what is being removed
                shutil.rmtree(gone[0], ignore_errors=True)
        return False

    ended = Command(TRAIN, tmp_path, environment(tmp_path / "cache")).wait(remove_after_the_first_epoch)
    require_clear_error(Answer(ended.code, ended.printed), gone[0].name)
    assert not list(tmp_path.glob("train_logs/*/result.json"))


@pytest.mark.promise("read-only")
@on_its_own_disk
def test_no_space_for_the_lock_is_no_obstacle_and_a_read_only_folder_is_named(disk: SmallDisk, manifests: Path) -> None:
    os.chdir(disk.folder)
    write_config(disk.folder / "config.yml", tiny_values(manifests))
    write_config(disk.folder / "baseline.yml", baseline_values(manifests))
    disk.make_read_only()
    require_clear_error(disk.handclip(*TRAIN), "train_logs", "read-only")
    require_clear_error(disk.handclip("evaluate", "baseline.yml"), "eval_logs", "read-only")
