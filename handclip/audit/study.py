"""Whether the runs of a study are there that it says are done."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from handclip.audit.findings import Finding, Outcome
from handclip.audit.folder import not_here, recorded_file
from handclip.file_names import STUDY
from handclip.files import read_json
from handclip.plurals import counted


def audit_study(folder: Path) -> Iterator[Finding]:
    """Yield what is found of a study's list of runs; the runs themselves are audited one by one."""
    entries = read_json(folder / STUDY)
    done = [entry for entry in entries if entry["state"] == "done"]
    named = [(entry["run"], path) for entry in done for path in (entry["checkpoint"], *entry["evaluations"]) if path]
    lost = []
    for run, path in named:
        place = folder / Path(path).parent.name / Path(path).name  # two below the study's folder, as a run's folder is
        if recorded_file(path, place) is None:
            lost.append(not_here(run, path, place))
    yield from (replace(one, found=f"{STUDY} says that it is done, but {one.found}") for one in lost)
    if not named:
        yield Finding(STUDY, Outcome.NOT_CHECKED, "no run of it is done")
    elif not lost:
        yield Finding(STUDY, Outcome.MATCHES, "the checkpoints and evaluations of its done runs are there")
    counts = ", ".join(f"{count} {state}" for state, count in Counter(entry["state"] for entry in entries).items())
    yield Finding(STUDY, Outcome.NOTE, f"{counted(len(entries), 'run')}: {counts}")
