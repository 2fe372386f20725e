"""Snapshots of a run: two kept, found by name, checked by hash; a damaged one is named and the one before it used."""

import logging
import os
import pickle
import shlex
import shutil
import tracemalloc
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import TinyRun, flip

from handclip.errors import ConfigError, DamagedFileError, DataError, TrainingError
from handclip.runs.snapshots import Snapshots

LONG_AGO = 10**9


@pytest.fixture
def states(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "run" / "checkpoints")


def save(states: Snapshots, epochs: int, steps: int = 0) -> Path:
    states.save({"epochs": epochs, "steps": steps}, epochs, steps)
    assert states.current is not None
    return states.current


@pytest.mark.promise("clock-set-back")
def test_the_newest_two_are_kept_by_name_whatever_the_clock_says(states: Snapshots) -> None:
    assert (states.newest(), states.paths()) == (None, [])
    saved = [save(states, *position) for position in ((9, 0), (9, 2), (9, 11), (10, 0), (10, 1))]
    assert saved[1].name.startswith("epoch_0009_step_00002-") and saved[3].name.startswith("epoch_0010-")
    os.utime(saved[4], (LONG_AGO, LONG_AGO))
    assert states.paths() == [saved[4], saved[3]]
    assert Snapshots(states.folder).newest() == saved[4]
    assert states.load(saved[4]) == {"epochs": 10, "steps": 1}
    assert states.describe() == "Everything up to epoch 11, step 1 is saved."


DAMAGES = {
    "flipped": flip,
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
}


@pytest.mark.promise("damaged-state")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_named_and_the_one_before_it_is_used(
    damage: str, states: Snapshots, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "handclip")
    first, second = save(states, 1), save(states, 1, 2)
    DAMAGES[damage](second)
    asking = Snapshots(states.folder)
    assert (asking.find(), asking.current, caplog.messages) == ((first, [second]), None, [])  # to ask changes nothing
    assert states.newest() == first
    assert caplog.messages == [f"{second}: is damaged. Training goes on from {first.name}, the one before it."]
    with pytest.raises(DamagedFileError, match="is not a state that training may go on from"):
        states.load(second)
    # What it goes on from is kept until two others are whole.
    third = save(states, 2)
    assert states.paths() == [third, first]

    DAMAGES[damage](first)
    DAMAGES[damage](third)
    with pytest.raises(DamagedFileError) as caught:
        Snapshots(states.folder).newest()
    assert str(caught.value) == (
        f"{third} and {first} are damaged, and there is no other state to go on from. "
        f"Move {states.folder.parent} and the run's checkpoints away to start anew"
    )


@pytest.mark.promise("leftovers")
def test_what_a_killed_process_has_left_is_removed(states: Snapshots) -> None:
    save(states, 1)
    left = states.folder / ".epoch_0002-0123456789abcdef.ckpt.01234567.part"
    left.write_bytes(b"half")
    assert [path.name for path in (states.newest(),) if path] == [states.paths()[0].name]
    save(states, 2)
    assert not left.exists()


def test_a_state_is_written_without_a_copy_of_it_in_memory(states: Snapshots) -> None:
    content = {"weights": torch.arange(2**21, dtype=torch.float32)}
    tracemalloc.start()
    try:
        states.save(content, 1, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    assert states.current is not None
    assert states.current.name == f"epoch_0001-{sha256(states.current.read_bytes()).hexdigest()[:16]}.ckpt"
    # The bytes are what torch writes to a file of its own accord.
    torch.save(content, whole := BytesIO())
    assert states.current.read_bytes() == whole.getvalue()


class _Payload:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (shlex.join(["touch", str(self.trace)]),)


@pytest.mark.promise("no-code")
def test_a_state_that_would_run_code_is_refused(states: Snapshots, tmp_path: Path) -> None:
    states.folder.mkdir(parents=True)
    for save_to in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))):
        raw = tmp_path / "raw"
        save_to({"epoch": _Payload(tmp_path / "trace")}, raw)
        hostile = states.folder / f"epoch_0001-{sha256(raw.read_bytes()).hexdigest()[:16]}.ckpt"
        raw.rename(hostile)
        assert states.newest() == hostile  # it has its hash
        with pytest.raises(DamagedFileError, match="is not a state that training may go on from"):
            states.load(hostile)
        hostile.unlink()
    assert not (tmp_path / "trace").exists()


# From here on with runs of one layer, whose files are those of every run.


@pytest.mark.promise("states-moved-away")
def test_a_run_whose_states_were_moved_away_does_not_begin_again(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    run.train(0.5, until=1)
    best = run.files.best.read_bytes()
    run.files.snapshots.rename(tmp_path / "moved")
    with pytest.raises(DamagedFileError, match=r"holds no state to go on from, although epochs were trained\. Put"):
        TinyRun(tmp_path).train()
    assert run.files.best.read_bytes() == best


def test_a_run_goes_on_with_the_same_data_in_the_same_precision_alone(tmp_path: Path) -> None:
    TinyRun(tmp_path).train(0.5, until=1)
    with pytest.raises(DataError, match=r"started with manifest a{12}, and cannot go on with b{12}: the data have cha"):
        TinyRun(tmp_path, manifest_sha256="b" * 64).train()
    other = TinyRun(tmp_path)
    other.made_with["precision"] = "bfloat16"
    with pytest.raises(ConfigError, match=r"was started in float32, but this machine chooses bfloat16\. Go on where"):
        other.train()


def test_a_stop_saves_steps_once_and_no_weights_that_are_not_finite(tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    run.train(0.5, until=1)
    run.state.steps_taken += 1
    for _ in range(2):
        assert run.saved.stop_here(run.state) == "Everything up to epoch 2, step 1 is saved."
    before = run.contents()
    assert len(run.snapshots.paths()) == 2
    run.state.steps_taken += 1
    run.step.objective.bias.data[0] = torch.nan
    with pytest.raises(TrainingError, match=r"^bias holds NaN or infinity after step .*, so nothing of it is saved\."):
        run.saved.stop_here(run.state)
    assert run.contents() == before
    run.step.objective.bias.data[0] = 0
    assert run.saved.stop_here(run.state).startswith("All steps of epoch 2 are saved. Its validation is done when")


@pytest.mark.promise("vanished-folder")
@pytest.mark.parametrize("what", ["folder", "states", "models"])
def test_what_was_removed_meanwhile_is_not_made_anew(what: str, tmp_path: Path) -> None:
    run = TinyRun(tmp_path)
    place = {"folder": run.files.folder, "states": run.files.snapshots, "models": run.files.best.parent}[what]
    run.step.after = lambda number: shutil.rmtree(place) if number == 2 else None
    with pytest.raises(TrainingError, match=r" is gone: somebody has removed it while the run was training\.$"):
        run.train(0.5, 0.9)
    assert not place.exists()
