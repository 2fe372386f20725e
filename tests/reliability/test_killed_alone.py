"""A process that is killed leaves none of those that it has started behind, and nothing half-made for long."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from handclip.synthetic import SyntheticHands, generate

_GENERATE = """
import sys
from pathlib import Path
from handclip.synthetic import SyntheticHands, generate, dataset
dataset.available_cores = lambda: 2
generate(Path(sys.argv[1]), SyntheticHands(identities=100, images_per_aspect=8, size=512))
"""


@pytest.mark.promise("leftovers")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list the children of a process")
def test_drawing_hands_that_is_killed_leaves_no_process_and_nothing_half_made(tmp_path: Path) -> None:
    root = tmp_path / "hands"
    with subprocess.Popen([sys.executable, "-c", _GENERATE, str(root)]) as process:
        while process.poll() is None and not list(tmp_path.glob(".hands.*.part/Hands/*.jpg")):
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    assert len(children) == 2
    deadline = time.monotonic() + 60
    while left := [child for child in children if _runs(int(child))]:
        if time.monotonic() > deadline:
            for child in left:
                os.kill(int(child), signal.SIGKILL)
            pytest.fail(f"{len(left)} processes of the pool go on without the one that started them")
        time.sleep(0.01)
    assert len(list(tmp_path.glob(".hands.*.part"))) == 1
    generate(root, SyntheticHands(identities=2, images_per_aspect=1, size=32))
    assert [path.name for path in tmp_path.iterdir()] == ["hands"]


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
