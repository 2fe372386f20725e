"""Whether the runs of a study are there that it says are done."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from handclip.audit.findings import Finding, Outcome, guarded
from handclip.audit.folder import not_here, recorded_file
from handclip.file_names import STUDY
from handclip.files import read_json
from handclip.plurals import counted


def audit_study(folder: Path) -> Iterator[Finding]:
    """Yield what is found of a study's list of runs; the runs themselves are audited one by one."""

    def check() -> Iterator[Finding]:
        entries = read_json(folder / STUDY)
        states = [entry["state"] for entry in entries]
        there = gone = elsewhere = 0
        for entry in entries:
            named = [entry["checkpoint"], *entry["evaluations"]] if entry["state"] == "done" else []
            for path in filter(None, named):
                # Two below the study's folder, as a run's folder is.
                place = folder / Path(path).parent.name / Path(path).name
                if recorded_file(path, place) is not None:
                    there += 1
                    continue
                lost = not_here(entry["run"], path, place)
                gone += lost.outcome == Outcome.GONE
                elsewhere += lost.outcome == Outcome.NOT_CHECKED
                yield replace(lost, found=f"{STUDY} says that it is done, but {lost.found}")
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        if there and not gone and not elsewhere:
            yield Finding(STUDY, Outcome.MATCHES, "the checkpoints and evaluations of its done runs are there")
        elif not gone and not elsewhere:
            yield Finding(STUDY, Outcome.NOT_CHECKED, "no run of it is done")
        yield Finding(STUDY, Outcome.NOTE, f"{counted(len(entries), 'run')}: {counts}")

    yield from guarded(STUDY, check)
