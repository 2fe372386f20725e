"""`!handclip train` in Jupyter: the notebook's own drawing backend is in the environment, and not installed here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_study import baseline_values, tiny_values, write_config

_INLINE = "module://matplotlib_inline.backend_inline"

_COMMANDS = """
import os, subprocess, sys
from handclip.cli import main

for words in (
    "train train.yml", "evaluate evaluate.yml", "report eval_logs --out report", "audit eval_logs", "doctor --json"
):
    sys.argv = ["handclip", *words.split()]
    try:
        main()
    except SystemExit as end:
        print("ENDED", words, end.code or 0, file=sys.stderr, flush=True)
subprocess.run([sys.executable, "-c", "import matplotlib.pyplot"], check=True)
"""


@pytest.mark.slow
def test_a_notebook_s_backend_ends_no_command_and_none_of_its_processes(manifests: Path, here: Path) -> None:
    write_config(here / "train.yml", tiny_values(manifests, epochs=1))
    write_config(here / "evaluate.yml", baseline_values(manifests, explained_images=0))
    ended = subprocess.run(
        [sys.executable, "-c", _COMMANDS],
        check=False,
        capture_output=True,
        text=True,
        cwd=here,
        env={**os.environ, "MPLBACKEND": _INLINE},
    )
    codes = [line.split()[1:2] + line.split()[-1:] for line in ended.stderr.splitlines() if line.startswith("ENDED")]
    names = ("train", "evaluate", "report", "audit", "doctor")
    assert codes == [[name, "0"] for name in names], ended.stderr
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout[ended.stdout.rindex("\n[") :])
    assert [check for check in found if check["state"] == "problem"] == []
