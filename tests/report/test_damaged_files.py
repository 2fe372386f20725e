"""What a comparison and a report are made from is checked before a number is taken from it, and damage is named."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import change_json, seal, write_run
from quick_figures import save_dots
from tiny_study import baseline_config, load_manifest

from handclip.checksums import read_checksums, write_checksums
from handclip.errors import DamagedFileError, HandCLIPError, InUseError
from handclip.file_names import CHECKSUMS
from handclip.locks import holding
from handclip.report import report as report_module
from handclip.report.comparison import compare_runs
from handclip.report.project import project_runs
from handclip.report.report import write_report
from handclip.report.report_writer import Note, ReportWriter
from handclip.report.runs import find_evaluations, read_run
from handclip.report.selection import gather
from handclip.runs.evaluate import evaluate

KEPT = {
    "attributes.csv": ("attributes", {"groups"}),
    "config.yml": ("config", {"provenance"}),
    "environment.json": ("environment", {"provenance"}),
    "explanations.safetensors": ("explanations", {"attention"}),
    "features.safetensors": ("features", {"biometric", "embedding", "groups", "retrieval"}),
    "manifest_dorsal_r.json": ("manifests", {"biometric", "embedding", "groups", "retrieval"}),
}
"""What a run of a report calls a file, and the parts of the page that are made from it."""
COMPARED = ("metrics.json", "per_query.csv", "cost.json", CHECKSUMS)
FILES = sorted((*KEPT, *COMPARED, "per_split.csv"))


@pytest.fixture(scope="module")
def evaluated(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation; copy it before changing it."""
    place = tmp_path_factory.mktemp("evaluated")
    config = baseline_config(manifests, eval_dir=str(place), flip_settings=["none"], num_splits=2, explained_images=1)
    return evaluate(config).folder


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    place = len(content) // 2
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    path.write_bytes({"truncated": content[:place], "empty": b"", "bit-flipped": flipped}[how])


def test_all_files_of_an_evaluation_are_tried_here(evaluated: Path) -> None:
    assert sorted((*(read_checksums(evaluated) or {}), CHECKSUMS)) == FILES


@pytest.mark.promise("damaged-evaluation")
@pytest.mark.parametrize("how", ["truncated", "empty", "bit-flipped"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_by_who_reads_it(
    evaluated: Path, tmp_path: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / evaluated.name
    shutil.copytree(evaluated, folder)
    whole = read_run(folder)
    damage(folder / name, how)
    if name in COMPARED:
        with pytest.raises(DamagedFileError, match=rf"/{name}: is damaged.*handclip evaluate CONFIG --overwrite"):
            compare_runs([tmp_path])
        return
    # A comparison does not need the others; what a report would take from them, it says is missing.
    run = gather([read_run(folder)]).best
    assert run.evaluated.metrics == whole.metrics
    if name in KEPT:
        kept, _ = KEPT[name]
        assert getattr(run, kept) is None
        assert f"{folder / name}: is damaged" in run.missing[kept]
    assert f"{folder / name}: is damaged" in caplog.text
    assert "handclip evaluate CONFIG --overwrite" in caplog.text


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("how", ["gone", "bit-flipped"])
def test_a_part_that_cannot_be_shown_says_the_true_reason_and_once_what_to_do(
    evaluated: Path, tmp_path: Path, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(evaluated, folder := tmp_path / evaluated.name)
    if how == "gone":
        (folder / name).unlink()
        reason = f"{name}: no such file, although {CHECKSUMS} beside it lists it"
    else:
        damage(folder / name, how)
        reason = f"{name}: is damaged or was changed"
    save_dots(monkeypatch)
    data, writer = gather([read_run(folder)]), ReportWriter(tmp_path / "out")
    for anchor, make in report_module._SECTIONS:
        if anchor not in KEPT[name][1]:
            continue
        notes = [block.text for block in make(data, writer).blocks if isinstance(block, Note)]
        (told,) = [text for text in notes if reason in text]
        assert told.count("handclip evaluate CONFIG --overwrite") == 1
        assert "not kept" not in told and ".." not in told


@pytest.mark.promise("damaged-report")
@pytest.mark.parametrize("name", ["per_split.csv", "provenance.json", "config.yml", "photograph"])
def test_a_report_says_what_is_damaged_though_the_page_is_written(
    evaluated: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of files that no section needs, and of photographs; what is merely not there is no fault."""
    shutil.copytree(evaluated, folder := tmp_path / "eval_logs" / evaluated.name)
    manifest, hands = load_manifest(folder), tmp_path / "hands"
    shown = {manifest.images[place].path for draw in manifest.draws for place in (*draw.query, *draw.gallery)}
    for photograph in shown:
        (hands / photograph).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(manifest.root / photograph, hands / photograph)
    replace(manifest, root=hands).save(folder / "manifest_dorsal_r.json")
    write_checksums(folder, read_checksums(folder) or {})
    save_dots(monkeypatch)
    wanted = "retrieval" if name == "photograph" else "provenance"
    monkeypatch.setattr(report_module, "_SECTIONS", [one for one in report_module._SECTIONS if one[0] == wanted])
    files = write_report([folder], tmp_path / "out")
    assert not files.faults and not files.fault
    assert "Not all of this report is sound" not in files.page.read_text()

    damaged = [hands / one for one in shown] if name == "photograph" else [folder / name]
    for path in damaged:
        damage(path, "bit-flipped")
    files = write_report([folder], tmp_path / "out")
    assert files.faults and all(any(fault.startswith(str(path)) for path in damaged) for fault in files.faults)
    assert files.fault.startswith(f"{files.page} was written, but not all of it is sound: {files.faults[0]}")
    assert "Not all of this report is sound" in files.page.read_text()
    shutil.rmtree(hands)
    if name == "photograph":
        assert not write_report([folder], tmp_path / "out").faults


def test_damage_of_a_run_that_has_no_figures_is_said_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "_SECTIONS", ())
    for name, aspect in (("a", "dorsal_r"), ("b", "dorsal_r"), ("elsewhere", "palmar_l")):
        run = write_run(tmp_path / "eval_logs" / name, aspects=[aspect], luck=ord(name[0]))
        (run / "per_split.csv").write_text("aspect,split\n")
        seal(run)
    damage(run / "per_split.csv", "bit-flipped")
    (fault,) = write_report([tmp_path / "eval_logs"], tmp_path / "out").faults
    assert fault.startswith(f"{run / 'per_split.csv'}: is damaged")


def test_another_manifest_in_the_place_of_an_evaluations_own_is_damage(evaluated: Path, tmp_path: Path) -> None:
    shutil.copytree(evaluated, folder := tmp_path / evaluated.name)
    replace(load_manifest(folder), seed=5).save(folder / "manifest_dorsal_r.json")
    seal(folder)
    run = gather([read_run(folder)]).best
    assert run.manifests is None
    assert "are not what metrics.json beside them was measured with" in run.damaged[0]


@pytest.mark.promise("damaged-training")
@pytest.mark.parametrize("name", ["metrics.csv", "result.json", "environment.json"])
def test_damaged_records_of_training_are_named(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    training = tmp_path / "train_logs" / "a"
    run = write_run(tmp_path / "eval_logs" / "a")
    training.mkdir(parents=True)
    (training / "metrics.csv").write_text("epoch,loss_total\n1,2.5\n2,1.5\n")
    for record in ("result.json", "environment.json"):
        (training / record).write_text('{"best_epoch": 2}')
    seal(training)
    cost = json.loads((run / "cost.json").read_text())["training"]
    change_json(run / "cost.json", training={**cost, "file": str(training / "result.json")})
    damage(training / name, "bit-flipped")
    shown = gather([read_run(run)]).best
    kinds = {"metrics.csv": "history", "result.json": "training_result", "environment.json": "training_environment"}
    for file, kind in kinds.items():
        assert (getattr(shown, kind) is None) == (file == name)
    assert f"{training / name}: is damaged" in caplog.text


def test_evaluations_without_checksums_are_read_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        write_run(tmp_path / name, checksums=name == "c")
    compare_runs([tmp_path])
    [warning] = [message for message in caplog.messages if "Not checked for damage" in message]
    assert warning.startswith(f"Not checked for damage: {tmp_path / 'a'} and 1 more.")


def test_a_list_that_leaves_out_what_is_read_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    write_checksums(run, ["per_query.csv"])
    with pytest.raises(DamagedFileError, match=r"SHA256SUMS: lacks metrics\.json, cost\.json"):
        compare_runs([tmp_path])


@pytest.mark.promise("not-finite-results")
@pytest.mark.parametrize("number", ["NaN", "Infinity", "null"])
@pytest.mark.parametrize("place", ["mean", "std"])
def test_a_score_that_is_no_number_is_refused(tmp_path: Path, place: str, number: str) -> None:
    path = write_run(tmp_path / "a") / "metrics.json"
    text, changed = re.subn(rf'("{place}": {{"rank1": )[\d.]+', rf"\g<1>{number}", path.read_text(), count=1)
    assert changed
    path.write_text(text)
    with pytest.raises(HandCLIPError, match=rf"metrics.json: results.0.{place}.rank1: "):
        compare_runs([tmp_path])


def test_two_processes_do_not_write_one_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = write_run(tmp_path / "a"), tmp_path / "out"
    for write in (write_report, project_runs):
        with holding(out), pytest.raises(InUseError, match="out is being written by process"):
            write([run], out)
        assert not out.exists()
    save_dots(monkeypatch)
    monkeypatch.setattr(report_module, "_SECTIONS", ())
    assert write_report([run], out).page.is_file()


def test_what_an_earlier_report_left_and_cannot_be_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = write_run(tmp_path / "a"), tmp_path / "out"
    monkeypatch.setattr(report_module, "_SECTIONS", ())
    write_report([run], out)
    (out / "figures" / "old.png").mkdir(parents=True)
    change_json(out / "report.json", files=["figures/old.png"])
    with pytest.raises(HandCLIPError, match=r"cannot remove .*figures/old\.png, which an earlier report left: Is a"):
        write_report([run], out)


def test_a_record_without_keys_counts_as_damaged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    (run / "environment.json").write_text("[]")
    read = gather([read_run(run)]).best
    assert read.environment is None
    fault = f"{run / 'environment.json'}: is damaged or is of another kind: it holds no JSON object"
    assert read.damaged == [fault]
    assert read.damage_of("environment") == fault


def test_an_evaluation_that_is_just_being_written_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path / "eval_logs" / "a")
    for metrics in (True, False):
        part = write_run(run / f".together.0123456{int(metrics)}.part")
        if not metrics:
            (part / "metrics.json").unlink()
    for place in (run, tmp_path, tmp_path / "eval_logs"):
        assert find_evaluations([place]) == ([run], [])
    assert "Left out" not in caplog.text


def test_a_table_of_names_like_formulas_runs_nothing(tmp_path: Path) -> None:
    table = ReportWriter(tmp_path).csv("names", [{"image": "=cmd|' C calc'!A0/+1.jpg", "score": -0.5}, {"image": "@x"}])
    assert table.read_bytes() == b"image,score\r\n'=cmd|' C calc'!A0/+1.jpg,-0.5\r\n'@x,\r\n"
