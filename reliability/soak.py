"""Kill work at many moments, do it again until it ends, and compare it with undisturbed work: `make soak`.

Training, evaluation, a study, preparing, filling the pixel cache and reporting, all on synthetic hands, are each done
once undisturbed. Then they are done again and again, and ended by SIGKILL, as by a power cut, at moments drawn from the
whole of the work: half of them by time, half of them by what is written. The same command, with `--resume` where it
trains, is given until the work has ended. Every number and every byte must then be the same, and nothing half-written
may be left. Some rounds are ended by SIGTERM instead, which must exit with 143 and say how to go on.

Moments drawn at random seldom fall into the short ones that matter. So work is also killed just before changes that it
makes to the disk: every n-th of them, or each, which takes much longer (`--every 1`).

The table is printed and, as JSON, written to `soak.json`; the exit code is 1 if anything differs. What differs is kept
beside what was expected.
"""

import argparse
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from commands import Command, Ended, Ending, environment, never
from comparing import differences, half_written
from every_change import kill_before
from rich.console import Console
from rich.table import Table
from works import Data, Work, make_data, works_on

from handclip.files import write_json
from handclip.parallel.hardware import describe_device

_KILLS_AT_MOST = 3
"""Kills of one piece of work, before it may end."""

_DATA = "data"


@dataclass
class Endurance:
    """What one kind of work has stood."""

    work: str
    kills: int = 0
    before_changes: int = 0
    """Kills just before a change to the disk."""
    changes: int = 0
    """How many changes it makes, to the nearest that was tried."""
    stops: int = 0
    """Times that SIGTERM ended it."""
    rounds: int = 0
    """Times that it was done to its end and compared."""
    where: dict[str, int] = field(default_factory=dict)
    """What it did when it was ended, and how often."""
    undisturbed_seconds: float = 0.0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where one kind of work is done: always in `now`, so that also the paths that it writes are the same."""

    folder: Path

    @property
    def now(self) -> Path:
        """Where it is done."""
        return self.folder / "now"

    @property
    def undisturbed(self) -> Path:
        """What it came to when nobody disturbed it."""
        return self.folder / "undisturbed"


def soak(
    works: Iterable[Work],
    out: Path,
    *,
    kills: int,
    seed: int,
    stops: int = 0,
    every: int | None = None,
    freshly: bool = True,
    before: Callable[[], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Endurance]:
    """Do each kind of work undisturbed and disturbed, in a folder of its own below `out`.

    Args:
        works: the work.
        out: for everything that is written.
        kills: SIGKILLs in all, shared out as the work says, at least one each.
        seed: of the moments.
        stops: rounds with SIGTERM for each kind of work.
        every: how many changes to the disk lie between those that it is killed before; as the work says by default.
        freshly: whether work that says so is also done by processes that import everything anew.
        before: called in each process before its command, unless it is a new Python.
        say: told what is done.
    """
    works = list(works)
    shares = sum(work.share for work in works)
    results = []
    done = 0.0
    for work in works:
        place = Place(out / work.name.replace(", ", "-").replace(" ", "-"))
        test = _Test(work, place, random.Random(f"{seed} {work.name}"), freshly, before)
        until = done + kills * work.share / shares
        results.append(test.endure(max(1, round(until) - round(done)), stops, every or work.every, say))
        done = until
    return results


class _Test:
    """What one kind of work is put through."""

    def __init__(
        self, work: Work, place: Place, rng: random.Random, freshly: bool, before: Callable[[], None] | None
    ) -> None:
        self.work = work
        self.freshly = freshly and work.freshly
        self.place = place
        self.rng = rng
        self.before = before
        self.result = Endurance(work.name)

    def endure(self, kills: int, stops: int, every: int, say: Callable[[str], None]) -> Endurance:
        """Do the work undisturbed, then killed and stopped; the first fault ends it."""
        work, result = self.work, self.result
        start = time.perf_counter()
        whole = self._begin(work.arguments).wait(never)
        if whole.code != 0:
            result.faults.append(f"fails undisturbed: {whole.printed[-2000:]}")
            return result
        self.place.now.rename(self.place.undisturbed)
        result.undisturbed_seconds = round(whole.seconds, 2)
        while result.kills < kills and not result.faults:
            most = min(_KILLS_AT_MOST, kills - result.kills)
            self._round(whole, most, signal.SIGKILL, fresh=self.freshly and not result.rounds)
            say(f"{work.name}: killed {result.kills} of {kills} times")
        while result.stops < stops and not result.faults:
            self._round(whole, 1, signal.SIGTERM)
            say(f"{work.name}: stopped {result.stops} of {stops} times")
        self._before_changes(every, say)
        result.seconds = round(time.perf_counter() - start, 1)
        for fault in result.faults:
            say(f"{work.name}: {fault}")
        return result

    def _begin(
        self, arguments: Sequence[str], *, fresh: bool = False, before: Callable[[], None] | None = None
    ) -> Command:
        now = self.place.now
        if not now.exists():
            now.mkdir(parents=True)
            self.work.begin(now)
        return Command(arguments, now, environment(now / "cache"), fresh=fresh, before=before or self.before)

    def _before_changes(self, every: int, say: Callable[[str], None]) -> None:
        """Kill it before every so many changes that it makes to the disk, and do it again each time."""
        result = self.result
        number = self.rng.randint(1, every)
        while not result.faults:
            arguments = self.work.arguments
            ended = self._begin(arguments, before=partial(_kill_before, number, self.before)).wait()
            if ended.code == 0:
                result.changes = number
                self._compare()
                return
            if ended.code == -signal.SIGKILL:
                result.before_changes += 1
                arguments = self.work.again
                ended = self._begin(arguments).wait()
            if ended.code != 0:
                self._fail(arguments, ended)
                return
            self._compare()
            say(f"{self.work.name}: killed before change {number}")
            number += every

    def _round(self, whole: Ended, most: int, signum: signal.Signals, *, fresh: bool = False) -> None:
        """Do the work once, ended up to `most` times on the way, and compare."""
        result, arguments, ended_early = self.result, self.work.arguments, 0
        while True:
            ending = _moment(whole, self.rng, fresh) if ended_early < most else None
            ended = self._begin(arguments, fresh=fresh).wait(ending, signum)
            if ended.code == 0 or (ended.code == -signal.SIGTERM and self._is_done()):
                break
            if ended.code == -signal.SIGKILL and ended.signalled and signum == signal.SIGKILL:
                result.kills += 1
            elif ended.signalled and signum == signal.SIGTERM and ended.code in (143, -signal.SIGTERM):
                result.stops += 1
                result.faults += _faults_of_a_stop(self.work, ended)
            else:
                self._fail(arguments, ended)
                return
            ended_early += 1
            result.where[ended.where] = result.where.get(ended.where, 0) + 1
            arguments = self.work.again
        self._compare()

    def _is_done(self) -> bool:
        """Whether all results are there: a signal may also come while the process ends that has done its work."""
        return not self._differences()

    def _differences(self) -> list[str]:
        return differences(self.place.undisturbed, self.place.now, from_the_same_files=self.work.name == "report")

    def _fail(self, arguments: Sequence[str], ended: Ended) -> None:
        self.result.faults.append(f"{' '.join(arguments)}: exit code {ended.code}: {ended.printed[-2000:]}")
        self.place.now.rename(self.place.folder / f"failed-{self.result.rounds}")

    def _compare(self) -> None:
        now, result = self.place.now, self.result
        result.rounds += 1
        found = self._differences()
        found += [f"{name}: was left half-written" for name in half_written(now)]
        result.faults += found
        if found:
            now.rename(self.place.folder / f"different-{result.rounds}")
        else:
            shutil.rmtree(now)


def _kill_before(number: int, then: Callable[[], None] | None) -> None:
    kill_before(number)
    if then is not None:
        then()


def _moment(whole: Ended, rng: random.Random, fresh: bool) -> Ending:
    """Draw when to end a process: at a time, or just after so many changes of files."""
    if rng.random() < 0.5:
        # One that is started afresh imports the libraries first, for seconds.
        moment = rng.uniform(0.02, 1.0) * whole.seconds + (rng.uniform(3, 6) if fresh else 0)
        return lambda seconds, changes: seconds >= moment
    count, delay = rng.randint(1, max(1, whole.changes)), rng.choice([0.0, 0.003, 0.03])
    reached: list[float] = []

    def ending(seconds: float, changes: int) -> bool:
        if changes >= count and not reached:
            reached.append(seconds)
        return bool(reached) and seconds >= reached[0] + delay

    return ending


def _faults_of_a_stop(work: Work, ended: Ended) -> list[str]:
    """Say what is wrong with how a command has ended on SIGTERM; before it is under way, that may end it at once."""
    if ended.code == -signal.SIGTERM:
        return [] if ended.where == "start-up" and not ended.printed else [f"SIGTERM was not handled {ended.where}"]
    faults = []
    if "Traceback" in ended.printed:
        faults.append(f"SIGTERM gave a traceback: {ended.printed[-2000:]}")
    if "Interrupted" not in ended.printed or work.goes_on not in ended.printed:
        faults.append(f"SIGTERM did not say how to go on: {ended.printed[-500:]}")
    return faults


def train_and_evaluate(data: Data, work: Work, out: Path) -> None:
    """Make the training, and the evaluation of it, that evaluating and reporting begin with."""
    out.mkdir(parents=True)
    work.begin(out)
    for arguments in (work.arguments, ("evaluate", "config.yml")):
        ended = Command(arguments, out, environment(out / "cache")).wait()
        if ended.code != 0:
            raise SystemExit(f"{' '.join(arguments)} fails undisturbed:\n{ended.printed}")
    assert out.absolute() == data.trained


def table(results: Sequence[Endurance]) -> Table:
    """Return the results as a table for a terminal."""
    grid = Table(title="Ended at many moments, done again, and compared with undisturbed work", show_lines=True)
    headings = ("work", "SIGKILL", "SIGTERM", "before a change", "rounds", "ended while it did", "equal", "seconds")
    for heading in headings:
        grid.add_column(heading, overflow="fold")
    for one in results:
        where = ", ".join(f"{place} ({count})" for place, count in one.where.items())
        equal = "yes" if not one.faults else "NO"
        before = f"{one.before_changes} of {one.changes}" if one.changes else ""
        grid.add_row(
            one.work, str(one.kills), str(one.stops), before, str(one.rounds), where, equal, f"{one.seconds:.0f}"
        )
    return grid


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs in all")
    parser.add_argument("--every", type=int, help="kill also before every so many changes to the disk; 1 takes hours")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("soak_out"), help="folder for everything it writes")
    parser.add_argument("works", nargs="*", metavar="WORK", help="only this kind of work, such as prepare")
    arguments = parser.parse_args()
    out: Path = arguments.out.absolute()
    if out.exists():
        if any(out.iterdir()) and not (out / _DATA).exists():
            parser.error(f"{out} is not of an earlier soak; choose another folder with --out")
        shutil.rmtree(out)
    start = time.perf_counter()
    data = make_data(out / _DATA)
    works = works_on(data)
    if unknown := set(arguments.works) - works.keys():
        parser.error(f"there is no work {', '.join(sorted(unknown))}; there are {', '.join(works)}")
    train_and_evaluate(data, works["train, 0 workers"], data.trained)

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - start:4.0f} s] {line}", file=sys.stderr, flush=True)

    chosen = [work for name, work in works.items() if not arguments.works or name in arguments.works]
    results = soak(chosen, out, kills=arguments.kills, seed=arguments.seed, stops=1, every=arguments.every, say=say)
    seconds = time.perf_counter() - start
    Console(width=None if sys.stdout.isatty() else 160).print(table(results))
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": arguments.seed,
        "kills": sum(one.kills for one in results),
        "kills_before_changes": sum(one.before_changes for one in results),
        "stops": sum(one.stops for one in results),
        "rounds": sum(one.rounds for one in results),
        "equal": not any(one.faults for one in results),
        "seconds": round(seconds, 1),
        "machine": describe_device(torch.device("cpu")),
        "works": [asdict(one) for one in results],
    }
    write_json(out / "soak.json", record)
    print(
        f"Survived {record['kills']} kills at random, {record['kills_before_changes']} before changes to the disk and "
        f"{record['stops']} stops in {seconds / 60:.1f} min; see {out}/soak.json"
    )
    faults = [f"{one.work}: {fault}" for one in results for fault in one.faults]
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
