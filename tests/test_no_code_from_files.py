"""Nothing that is read from a file, or from another process, is run."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for place in ("handclip", "benchmarks", "experiments", "fuzz", "run_eval_clip.py")
    for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
)

FORBIDDEN = {"eval", "exec", "compile", "__import__", "runpy.run_path", "runpy.run_module", "os.system", "os.popen"}
"""Calls that run text."""
LOADERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.jit"}
"""Modules whose ways of reading run what they read."""
HARMLESS = {"dumps", "dump", "Pickler", "PicklingError", "UnpicklingError", "script"}
"""What else is in them."""
EXCEPTIONS = {
    ("handclip/parallel/launching.py", "pickle.loads"),  # reads what a process that it started itself sends
    ("handclip/models/torchscript.py", "pickle.Unpickler"),  # hands out nothing that could run a program
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` for names and attributes, empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def full_names(tree: ast.Module) -> dict[str, str]:
    """What imported names stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def safe_loaders(tree: ast.Module) -> set[str]:
    """The YAML loaders of a module that are SafeLoaders."""
    return {"yaml.SafeLoader", "yaml.CSafeLoader"} | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(dotted(base) == "yaml.SafeLoader" for base in node.bases)
    }


def option(call: ast.Call, name: str) -> object:
    """The constant that a call gives to a keyword; None if it gives none."""
    values = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def is_dangerous(name: str, call: ast.Call, safe: set[str]) -> bool:
    """Whether a call may run what it is given to read."""
    module, _, function = name.rpartition(".")
    if name in FORBIDDEN or (module in LOADERS and function not in HARMLESS):
        return True
    if name in ("torch.load", "torch.hub.load", "torch.hub.load_state_dict_from_url"):
        return option(call, "weights_only") is not True
    if name in ("np.load", "numpy.load", "numpy.lib.format.read_array", "np.lib.format.read_array"):
        return option(call, "allow_pickle") is not False
    if name in ("yaml.load", "yaml.load_all"):
        return len(call.args) != 2 or dotted(call.args[1]) not in safe
    if module == "yaml":
        return function.startswith(("unsafe_", "full_"))
    return option(call, "shell") is True or function == "read_pickle"


@cache
def dangers(source: str) -> list[tuple[str, int]]:
    """Return the dangerous calls of a module, and classes made of such readers, with their lines."""
    tree = ast.parse(source)
    names, safe = full_names(tree), safe_loaders(tree)

    def resolved(node: ast.expr) -> str:
        first, _, rest = dotted(node).partition(".")
        return ".".join(filter(None, [names.get(first, first), rest]))

    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and is_dangerous(resolved(node.func), node, safe):
            found.append((resolved(node.func), node.lineno))
        for base in node.bases if isinstance(node, ast.ClassDef) else ():
            if resolved(base).partition(".")[0] in LOADERS or resolved(base) in ("yaml.Loader", "yaml.UnsafeLoader"):
                found.append((resolved(base), node.lineno))
    return found


@pytest.mark.promise("no-code")
def test_nothing_runs_what_it_reads() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), call)
        for path in SOURCES
        for call, _ in dangers(path.read_text(encoding="utf-8"))
    }
    assert found == EXCEPTIONS


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "import pickle as p\np.loads(b)",
        "from pickle import loads\nloads(b)",
        "import pickle\nclass U(pickle.Unpickler): pass",
        "eval(text)",
        "exec(text)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import yaml\nyaml.load(text)",
        "import yaml\nclass L(yaml.Loader): pass\nyaml.load(text, L)",
        "import yaml\nyaml.unsafe_load(text)",
        "import torch\ntorch.load(p)",
        "import torch\ntorch.load(p, weights_only=False)",
        "from torch import load as read\nread(p)",
        "import torch\ntorch.jit.load(p)",
        "import numpy as np\nnp.load(p)",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import subprocess\nsubprocess.run(c, shell=True)",
        "import os\nos.system(c)",
        "import shelve\nshelve.open(p)",
        "import marshal\nmarshal.loads(b)",
        "import joblib\njoblib.load(p)",
        "import pandas as pd\npd.read_pickle(p)",
    ],
)
def test_what_would_run_is_recognised(source: str) -> None:
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.safe_load(text)",
        "import yaml\nclass L(yaml.SafeLoader): pass\nyaml.load(text, L)",
        "import torch\ntorch.load(p, map_location='cpu', weights_only=True)",
        "import numpy as np\nnp.load(p, allow_pickle=False)",
        "model.eval()",
        "import json\njson.loads(text)",
        "import re\nre.compile(text)",
    ],
)
def test_what_only_reads_is_left_alone(source: str) -> None:
    assert not dangers(source)
