"""Two small things that many use: how many processes share the cores, and words that follow a number."""

import pytest

from handclip.cores import processes_sharing_cores
from handclip.errors import ConfigError
from handclip.plurals import counted


def test_processes_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert processes_sharing_cores() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes_sharing_cores() == 4
    for value in ("x", "", "0", "-1", "1.5", "²"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", value)
        with pytest.raises(ConfigError, match=r"LOCAL_WORLD_SIZE: .* got "):
            processes_sharing_cores()


def test_a_number_has_its_noun() -> None:
    assert [counted(number, "run") for number in (0, 1, 1000)] == ["0 runs", "1 run", "1,000 runs"]
    assert [counted(number, "person", "people") for number in (1, 2101)] == ["1 person", "2,101 people"]
