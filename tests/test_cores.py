"""How many processes share the cores, as the environment says."""

import pytest

from handclip.cores import processes_sharing_cores
from handclip.errors import ConfigError


def test_processes_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert processes_sharing_cores() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes_sharing_cores() == 4


@pytest.mark.parametrize("value", ["x", "", "0", "-1", "1.5", "²"])
def test_a_number_of_processes_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", value)
    with pytest.raises(ConfigError, match=r"LOCAL_WORLD_SIZE: .* got "):
        processes_sharing_cores()
