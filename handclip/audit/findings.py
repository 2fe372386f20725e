"""What an audit has found: for each file or number, whether it is still what it was."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, ParamSpec

from handclip.errors import HandCLIPError

_TOLERANCE = 1e-9
"""Recomputed numbers may differ by so much, which is what the order of a sum makes on another machine."""

_SHOWN = 3

P = ParamSpec("P")

Kind = Literal["evaluation", "training", "checkpoint", "manifest", "study", "folder"]
"""What was audited; `folder` is one that may not be read, so that nobody knows what it holds."""


class Outcome(StrEnum):
    """What became of a file or a number. `DIFFERS` and `GONE` are failures."""

    MATCHES = "matches"
    DIFFERS = "differs"
    GONE = "gone"
    NOT_CHECKED = "not checked"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One file or number, what became of it, and what was found."""

    what: str
    outcome: Outcome
    found: str


@dataclass(frozen=True)
class AuditResult:
    """All that was found of one run, checkpoint, manifest or study."""

    place: Path
    kind: Kind
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether all that could be checked matches."""
        return not (self.counts[Outcome.DIFFERS] or self.counts[Outcome.GONE])

    @property
    def checked(self) -> bool:
        """Whether anything could be checked; not, for one, where a run is being written."""
        return not self.holds or bool(self.counts[Outcome.MATCHES])

    @property
    def counts(self) -> dict[str, int]:
        """How many findings have each outcome, by its name."""
        outcomes = [finding.outcome for finding in self.findings]
        return {str(outcome): outcomes.count(outcome) for outcome in Outcome}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `holds` is None where nothing could be checked."""
        return {
            "place": str(self.place),
            "kind": self.kind,
            "holds": self.holds if self.checked else None,
            "counts": self.counts,
            "findings": [asdict(finding) for finding in self.findings],
        }


def guarded(what: str, check: Callable[P, Iterable[Finding]], *args: P.args, **kwargs: P.kwargs) -> Iterator[Finding]:
    """Yield what a check finds; where it cannot read something, that is a finding too."""
    try:
        yield from check(*args, **kwargs)
    except FileNotFoundError as error:
        yield Finding(what, Outcome.GONE, f"{error.filename} is not there")
    except HandCLIPError as error:
        yield Finding(what, Outcome.DIFFERS, str(error))
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
        yield Finding(what, Outcome.DIFFERS, f"is not what HandCLIP writes, and was damaged or changed ({fault})")


def compared(what: str, recorded: Any, computed: Any, found: str) -> Finding:
    """Compare what a file says with what was computed anew.

    Args:
        what: the file or number.
        recorded: plain values, as read from JSON.
        computed: the same; `recorded` may have further keys.
        found: what to say where they agree.
    """
    faults = list(_differences(recorded, computed))
    return Finding(what, Outcome.DIFFERS, shortened(faults)) if faults else Finding(what, Outcome.MATCHES, found)


def _differences(recorded: Any, computed: Any, where: str = "") -> Iterator[str]:
    """Yield each value that is not as computed, by its keys."""
    if isinstance(computed, dict) and isinstance(recorded, dict):
        for key, value in computed.items():
            inner = f"{where}.{key}" if where else str(key)
            if key in recorded:
                yield from _differences(recorded[key], value, inner)
            else:
                yield f"{inner}: nothing is recorded, recomputed {value}"
    elif isinstance(computed, list) and isinstance(recorded, list) and len(computed) == len(recorded):
        for number, (old, new) in enumerate(zip(recorded, computed, strict=True)):
            yield from _differences(old, new, f"{where}[{number}]")
    elif not _same(recorded, computed):
        yield f"{where}: {recorded} is recorded, recomputed {computed}"


def shortened(faults: list[str]) -> str:
    """Return the first few of many sentences, and how many there are."""
    more = f"; and {len(faults) - _SHOWN:,} more" if len(faults) > _SHOWN else ""
    return "; ".join(faults[:_SHOWN]) + more


def _same(recorded: Any, computed: Any) -> bool:
    """Whether two values are the same, numbers but for the order of a sum; NaN is the same as nothing."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (recorded, computed))
    return abs(recorded - computed) <= _TOLERANCE if numbers else bool(recorded == computed)
