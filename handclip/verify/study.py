"""Whether the runs of a study are there that it says are done."""

from collections.abc import Iterator
from pathlib import Path

from handclip.file_names import STUDY
from handclip.files import read_json
from handclip.verify.findings import Finding, Outcome, guarded
from handclip.verify.folder import recorded_file


def verify_study(folder: Path) -> Iterator[Finding]:
    """Yield what is found of a study's list of runs; the runs themselves are verified one by one."""

    def check() -> Iterator[Finding]:
        entries = read_json(folder / STUDY)
        states = [entry["state"] for entry in entries]
        there = gone = 0
        for entry in entries:
            named = [entry["checkpoint"], *entry["evaluations"]] if entry["state"] == "done" else []
            for path in filter(None, named):
                # Two below the study's folder, as a run's folder is.
                if recorded_file(path, folder / Path(path).parent.name / Path(path).name) is not None:
                    there += 1
                else:
                    gone += 1
                    yield Finding(entry["run"], Outcome.GONE, f"{STUDY} says that it is done, but {path} is not there")
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        if there and not gone:
            yield Finding(STUDY, Outcome.MATCHES, "the checkpoints and evaluations of its done runs are there")
        elif not gone:
            yield Finding(STUDY, Outcome.NOT_CHECKED, "no run of it is done")
        yield Finding(STUDY, Outcome.NOTE, f"{len(entries)} run{'' if len(entries) == 1 else 's'}: {counts}")

    yield from guarded(STUDY, check)
