"""Paths that a person names, and that the system refuses: one sentence that names the path and says why."""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from made_images import close_to_all, hand, write_people
from made_runs import write_run
from tiny_study import baseline_values, load_manifest, tiny_values, write_config

from handclip.audit.places import find_places
from handclip.cli import run
from handclip.datasets.preparation import Preparation
from handclip.datasets.prepare import find_or_prepare, prepare
from handclip.errors import HandCLIPError
from handclip.files import is_file, is_folder, is_there, nearest_there, read_json, require_writable
from handclip.report import report
from handclip.report.runs import find_evaluations
from handclip.runs.provenance import read_provenance

Handclip = Callable[..., Any]
LONG = "n" * 300
DENIED = "cannot be read: Permission denied"
NOBODY = 65534


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Let this process neither list nor enter a folder of the working directory."""
    superuser = os.geteuid() == 0
    mode = folder.stat().st_mode
    Path().chmod(0o755)
    folder.chmod(0)
    if superuser:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if superuser:
            os.seteuid(0)
        folder.chmod(mode)


@pytest.mark.promise("impossible-names")
@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", LONG),
        ("audit", f"{LONG}.pth"),
        ("compare", LONG, "--out", "out"),
        ("compare", "runs", "--out", LONG),
        ("report", "runs", "--out", LONG),
        ("project", LONG, "--out", "out"),
        ("prepare", "11k", "--root", LONG, "--out", "out"),
        ("prepare", "hd", "--root", LONG, "--out", "out"),
        ("prepare", "folder", "--root", LONG, "--out", "out"),
        ("prepare", "folder", "--root", "runs", "--out", LONG),
        ("prepare", "--check", LONG),
        ("explain", f"{LONG}.pth", "a.jpg", "--out", "out"),
        ("explain", "a.pth", f"{LONG}.jpg", "--out", "out"),
        ("explain", "a.pth", "a.jpg", "--out", LONG),
        ("demo", "--data", LONG, "--out", "new"),
        ("demo", "--out", LONG),
        ("train", f"{LONG}.yml"),
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG"),
)
def test_a_name_that_no_file_can_have_is_one_sentence(
    arguments: tuple[str, ...], handclip: Handclip, here: Path
) -> None:
    write_run(here / "runs" / "one", checksums=True)
    (here / "out").mkdir()
    (here / "a.pth").touch()
    answer = handclip(*arguments)
    assert answer.code in (1, 2)
    [sentence] = answer.err.splitlines()
    assert sentence.startswith("Error: ") and LONG in sentence
    assert sentence.endswith("File name too long")
    assert not list(here.glob("out/*"))


@pytest.mark.promise("impossible-names")
@pytest.mark.parametrize("key", ["manifest", "data_root", "checkpoint", "resume_from", "pretrained", "output_dir"])
def test_a_name_of_a_config_that_no_file_can_have_is_one_sentence(key: str, handclip: Handclip, here: Path) -> None:
    values = tiny_values(here, manifest=None, data_root="nowhere")
    config = write_config(here / "tiny.yml", {**values, key: LONG})
    answer = handclip("evaluate" if key == "checkpoint" else "train", config)
    assert answer.code in (1, 2)
    assert "Traceback" not in answer.err
    assert LONG in answer.err.splitlines()[-1]


@pytest.mark.promise("unreadable-named")
def test_what_lies_below_a_folder_that_may_not_be_entered_is_not_taken_for_absent(here: Path) -> None:
    write_run(Path("closed/run"))
    with closed(Path("closed")):
        for look in (
            is_there,
            is_file,
            is_folder,
            lambda path: find_places(path),
            lambda path: find_evaluations([path]),
        ):
            with pytest.raises(HandCLIPError, match=r"^closed/run: cannot be read: Permission denied$"):
                look(Path("closed/run"))
        with pytest.raises(HandCLIPError, match=r"^cannot write closed/out: .*Permission denied$"):
            require_writable(Path("closed/out"))


@pytest.mark.promise("unreadable-below")
def test_a_run_that_may_not_be_read_is_left_out_by_name(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = write_run(Path("studies/first/eval_logs/one")), write_run(Path("studies/second/eval_logs/two"))
    Path("studies/linked").symlink_to(two.absolute())
    for folder in (two, Path("studies/second")):
        caplog.clear()
        with closed(folder):
            found, unread = find_evaluations([Path("studies")])
            places = find_places(Path("studies"))
        # Of the link nobody can tell that it leads to a run, either.
        names = [folder, Path("studies/linked")]
        assert found == [one]
        assert sorted(unread) == sorted(f"{name}: {DENIED}; what is there is not compared" for name in names)
        assert sorted(caplog.messages) == sorted(f"Left out: {sentence}" for sentence in unread)
        assert [place.path for place in places if not place.unread] == [one]
        assert sorted(place.path for place in places if place.unread) == sorted(names)
        assert all(place.kind == "folder" and DENIED in place.unread for place in places if place.unread)
    Path("studies/linked").unlink()
    assert find_evaluations([Path("studies")]) == ([one, two], [])


@pytest.mark.promise("unread-photographs")
def test_folders_of_a_data_set_that_may_not_be_read(here: Path) -> None:
    people = write_people(Path("people"))
    Path("people/lost+found").mkdir()
    hand(people)  # so that nothing is imported while this process may not read Python's files
    with closed(Path("people/lost+found")):
        assert len(hand(people).identity_names) == 5
    with closed(Path("people/p4")):
        with pytest.raises(HandCLIPError, match=r"nothing is read of 1 identity:\n  p4: .* \(p4: Permission denied\)"):
            hand(people)
        assert hand(people, allow_missing=True).unread_identities == 1
    with closed(people), pytest.raises(HandCLIPError, match=r"^people: cannot be read: Permission denied$"):
        hand(people)


@pytest.mark.parametrize("dataset", ["11k", "hd"])
def test_a_folder_of_a_known_data_set_that_may_not_be_read(
    dataset: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"11k": ["data/Hands"], "hd": ["data/502-712", "data/1-501"]}[dataset]
    for folder in folders:
        Path(folder).mkdir(parents=True)
    Path("data/HandInfo.csv").write_text("id,accessories,aspectOfHand,imageName\n1,0,dorsal right,a.jpg\n")
    for folder in folders:
        close_to_all(Path(folder), monkeypatch)
        with pytest.raises(HandCLIPError, match=rf"^{folder}: {DENIED}$"):
            prepare(dataset, Path("data"), Path("out"))


@pytest.mark.parametrize("dataset", ["11k", "hd", "folder"])
def test_of_a_data_set_whose_root_may_not_be_read_the_root_is_named(dataset: str, here: Path) -> None:
    root = Path("drive")
    root.mkdir()
    with pytest.raises(HandCLIPError):
        prepare(dataset, root, Path("out"))  # so that nothing is imported while this process may not read
    with closed(root):
        with pytest.raises(HandCLIPError, match=rf"^drive: {DENIED}$"):
            prepare(dataset, root, Path("out"))
        with pytest.raises(HandCLIPError, match=rf"^drive: {DENIED}$"):
            find_or_prepare(Preparation(dataset, root), Path("out"))


@pytest.mark.promise("unreadable-named")
def test_a_named_folder_that_may_not_be_read_is_an_error(here: Path) -> None:
    two = write_run(Path("runs/two"))
    with closed(two):
        with pytest.raises(HandCLIPError, match=rf"^runs/two: {DENIED}$"):
            find_evaluations([two])
        with pytest.raises(HandCLIPError, match=rf"^runs/two(/\S+)?: {DENIED}$"):
            find_places(two)


@pytest.fixture
def two_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody list `runs/two`."""
    close_to_all(Path("runs/two"), monkeypatch)


@pytest.mark.promise("unreadable-below")
@pytest.mark.usefixtures("two_refused")
def test_what_may_not_be_read_is_said_and_the_rest_goes_on(
    handclip: Handclip, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_SECTIONS", ())
    write_run(here / "runs" / "one", checksums=True)
    write_run(here / "runs" / "two", checksums=True)
    left_out = f"runs/two: {DENIED}; what is there is not compared"
    for command, said in (
        ("compare", "compare was written, but not of all that is named"),
        ("report", "report/report.html was written, but not all of it is sound"),
    ):
        answer = handclip(command, "runs", "--out", command)
        first, *_, last = answer.err.splitlines()
        assert (answer.code, last) == (1, f"Error: {said}: {left_out}")
        assert first.endswith(f"Left out: {left_out}")
        assert "ritten to compare/: comparison.md" in answer.out or "Report: report/report.html" in answer.out
    assert json.loads(Path("report/report.json").read_text())["faults"] == [left_out]
    assert left_out in Path("report/report.html").read_text()


@pytest.mark.promise("unreadable-below")
@pytest.mark.usefixtures("two_refused")
def test_audit_says_which_folder_it_could_not_read(handclip: Handclip, manifests: Path, here: Path) -> None:
    load_manifest(manifests).save(here / "runs" / "one" / "manifest_dorsal_r.json")
    (here / "runs" / "two").mkdir()
    answer = handclip("audit", "runs", "--no-images")
    assert answer.code == 1
    assert "1 checked: all that could be checked matches.\n1 not checked: runs/two\n" in answer.out
    assert f"two: runs/two: {DENIED}; what is there is not audited" in answer.out
    found = json.loads(handclip("audit", "runs", "--no-images", "--json").out)
    assert [(one["kind"], one["holds"]) for one in found] == [("manifest", True), ("folder", None)]


@pytest.mark.promise("hidden-folders")
def test_hidden_folders_and_links_to_nowhere_are_passed_over(
    handclip: Handclip, manifests: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_SECTIONS", ())
    one = write_run(Path("runs/one"), checksums=True)
    write_run(Path("runs/.Trash-1000/two"), checksums=True, manifest_sha256="f" * 64)
    Path("runs/loop").symlink_to("loop")
    Path("runs/gone").symlink_to("nowhere")
    Path("runs/below_a_file").symlink_to("one/metrics.json/more")
    assert find_evaluations([Path("runs")]) == ([one], [])
    assert [place.path for place in find_places(Path("runs"))] == [one]
    for command in ("compare", "report"):
        answer = handclip(command, "runs", "--out", command)
        assert (answer.code, answer.err) == (0, "")
    answer = handclip("compare", "runs/loop", "--out", "out")
    assert (answer.code, answer.err) == (1, "Error: runs/loop: no such file or folder\n")
    answer = handclip("compare", "runs", "--out", "runs/loop")
    assert answer.code == 1
    assert answer.err.splitlines()[-1].startswith("Error: cannot write runs/loop")
    Path("runs/model.pth").symlink_to("model.pth")
    answer = handclip("audit", "runs")
    assert (answer.code, "checkpoint runs/model.pth" in answer.out, answer.err) == (1, True, "")


def test_the_nearest_that_is_there_is_found_above_what_is_not(here: Path) -> None:
    Path("there").mkdir()
    Path("loop").symlink_to("loop")
    assert nearest_there(Path("there")) == Path("there")
    assert nearest_there(Path("there/not/yet")) == here / "there"
    assert nearest_there(Path("loop/not/yet")) == here


@pytest.mark.promise("check-folder")
def test_a_check_of_a_folder_without_manifests_fails(handclip: Handclip, here: Path) -> None:
    (here / "empty").mkdir()
    answer = handclip("prepare", "--check", "empty")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == "Error: empty: holds no manifest (manifest_*.json); `handclip prepare` makes them\n"


@pytest.mark.promise("check-folder")
def test_a_check_tells_of_all_manifests(handclip: Handclip, manifests: Path, here: Path) -> None:
    sound = load_manifest(manifests)
    sound.save(here / "some" / "manifest_dorsal_r.json")
    replace(sound, draws=()).save(here / "some" / "manifest_breach.json")
    (here / "some" / "manifest_broken.json").write_text("{")
    answer = handclip("prepare", "--check", "some")
    assert answer.code == 1
    assert answer.out.startswith("some/manifest_dorsal_r.json: ") and "keeps to the protocol" in answer.out
    breach, *_, broken = answer.err.splitlines()
    assert breach == "Error: some/manifest_breach.json: there are no query/gallery draws"
    assert broken.startswith("some/manifest_broken.json is not a HandCLIP manifest: it is not JSON")


@pytest.mark.promise("names-not-utf8")
def test_a_config_whose_name_is_not_utf_8(handclip: Handclip, manifests: Path, here: Path) -> None:
    config = Path(os.fsdecode(b"caf\xe9.yml"))
    small = {"num_splits": 1, "flip_settings": ["none"], "explained_images": 0}
    try:
        write_config(config, tiny_values(manifests, epochs=1, **small))
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    trained = handclip("train", config)
    assert trained.code == 0, trained.err
    evaluated = handclip("evaluate", config)
    assert evaluated.code == 0, evaluated.err
    assert r"Config:           caf\udce9.yml" in evaluated.out
    [log] = here.glob("eval_logs/*/eval.log")
    assert r"Config:           caf\udce9.yml" in log.read_text("utf-8")
    for folder, command in ((next(here.glob("train_logs/*")), "train"), (log.parent, "evaluate")):
        words = ["handclip", command, r"caf\udce9.yml"]
        assert read_json(folder / "environment.json")["command"] == words
        assert (read_provenance(folder) or {})["sessions"][0]["command"] == words


@pytest.mark.promise("evaluation-without-log")
def test_an_evaluation_is_shown_though_its_log_cannot_be_made_anew(
    handclip: Handclip, manifests: Path, here: Path
) -> None:
    values = baseline_values(manifests, num_splits=1, flip_settings=["none"], explained_images=0)
    config = write_config(here / "baseline.yml", values)
    first = handclip("evaluate", config)
    [log] = here.glob("eval_logs/*/eval.log")
    log.unlink()
    log.mkdir()  # which not even the superuser can replace by a file
    again = handclip("evaluate", config)
    assert again.code == 0, again.err
    shown = first.out.partition("Log: ")[0]
    assert again.out.startswith(f"{shown}For programs: ")
    said = f"The log of this evaluation is missing, and cannot be made anew: cannot write {log.relative_to(here)}: "
    assert said in again.err


def raising(error: BaseException) -> typer.Typer:
    command = typer.Typer(pretty_exceptions_enable=False)

    @command.command()
    def fail() -> None:
        raise error

    return command


@pytest.mark.promise("impossible-names")
def test_what_the_system_says_of_a_file_is_the_last_resort(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["handclip"])
    with pytest.raises(SystemExit) as end:
        run(raising(OSError(errno.EIO, "Input/output error", "eval_logs/a.json")))
    assert end.value.code == 1
    assert capsys.readouterr().err == "Error: eval_logs/a.json: Input/output error\n"


@pytest.mark.promise("impossible-names")
@pytest.mark.parametrize("error", [OSError("a bug"), OSError(errno.EBADF, "Bad file descriptor"), KeyError("a bug")])
def test_a_fault_of_the_programs_own_is_not_hidden(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["handclip"])
    with pytest.raises(type(error)):
        run(raising(error))
