import subprocess
import sys

import pytest

from handclip import _torchvision_operators as operators


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_neither_torch_nor_torchvision() -> None:
    code = (
        "import sys, handclip, handclip.errors, handclip.config.loading, handclip.config.naming; "
        "print([name for name in ('torch', 'torchvision', 'open_clip', 'timm') if name in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


def test_the_finder_is_installed_once_and_steps_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = []
    monkeypatch.setattr(operators, "declare_missing_operators", lambda: declared.append(True))
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    operators.prepare_torchvision_import()
    operators.prepare_torchvision_import()
    (finder,) = sys.meta_path
    assert finder.find_spec("json", None) is None and sys.meta_path == [finder] and not declared
    assert finder.find_spec("torchvision", None) is None
    assert declared == [True] and sys.meta_path == []
    monkeypatch.setitem(sys.modules, "torchvision", sys)  # where it is imported already
    operators.prepare_torchvision_import()
    assert sys.meta_path == []
    monkeypatch.undo()
    monkeypatch.setattr(operators.PathFinder, "find_spec", lambda name: None)  # where there is none
    assert operators.declare_missing_operators() is False


def test_operators_are_declared_where_the_compiled_library_does_not_load() -> None:
    code = (
        "import torch\n"
        "def refuse(path): raise OSError('built for another PyTorch')\n"
        "torch.ops.load_library = refuse\n"
        "from handclip._torchvision_operators import declare_missing_operators\n"
        "print(declare_missing_operators(), declare_missing_operators())\n"
        "print(torch.ops.torchvision.nms.default)\n"
    )
    assert run_python(code).split() == ["True", "False", "torchvision.nms.default"]
