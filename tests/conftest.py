"""What every test relies on: no network, one thread, and tiny CLIP models that open_clip knows by name."""

import logging
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# By these, a terminal or a service that runs tests would have output cut to a width, or coloured. pytest-xdist sets
# COLUMNS in its processes.
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)

# A shell starts what it puts into the background with Ctrl-C ignored.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import handclip  # noqa: E402, F401  (before a test imports open_clip, and with it torchvision)

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch; sums do not depend on the machine then


def _matplotlib_folder() -> Path:
    """Return the user's own, or another that lasts where the user has no home that can be written to."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matplotlib"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return Path(tempfile.gettempdir()) / f"handclip-tests-{os.getuid()}" / "matplotlib"
    return folder


# Each test has a cache folder of its own, see `_own_cache`, in which matplotlib would have to list the fonts again.
os.environ.setdefault("MPLCONFIGDIR", str(_matplotlib_folder()))

_TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
_VIT = {"image_size": 64, "layers": 3, "width": 64, "head_width": 32, "patch_size": 16}
_RN = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "patch_size": None}
TINY_MODELS: dict[str, dict[str, Any]] = {
    "tiny-vit": {"embed_dim": 32, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "tiny-vit-quickgelu": {"embed_dim": 32, "quick_gelu": True, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "tiny-rn": {"embed_dim": 32, "vision_cfg": _RN, "text_cfg": _TEXT},
    "tiny-timm-vit": {
        "embed_dim": 32,
        "vision_cfg": {
            "timm_model_name": "test_vit",
            "timm_pool": "token",
            "timm_proj": "linear",
            "image_size": 160,
        },
        "text_cfg": _TEXT,
    },
    "tiny-timm-cnn": {
        "embed_dim": 32,
        "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "", "image_size": 64},
        "text_cfg": _TEXT,
    },
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the user's pixel cache, and from one another's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.with_name(f"{tmp_path.name}-cache")))


@pytest.fixture(autouse=True)
def _own_luck() -> None:
    """Draw the same numbers in a test, whichever tests have drawn some in this process before it."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """Undo what a command does to the package's log, which later tests in this process would see."""
    logger = logging.getLogger("handclip")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers = handlers


@pytest.fixture
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let open_clip know `TINY_MODELS` as it knows its own architectures."""
    from open_clip import factory

    monkeypatch.setattr(factory, "_MODEL_CONFIGS", {**factory._MODEL_CONFIGS, **TINY_MODELS})
    yield


@pytest.fixture(scope="session")
def hands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic hands in 11k layout; read them, do not change them."""
    from tiny_study import make_hands

    return make_hands(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their manifests."""
    from tiny_study import make_manifests

    return make_manifests(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def stage1(manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result of a trained stage-1 model; read it, do not change it."""
    from tiny_study import tiny_config

    from handclip.runs.train import train

    place = tmp_path_factory.mktemp("stage1")
    places = {"output_dir": str(place / "train_logs"), "save_dir": str(place / "saved_models")}
    return train(tiny_config(manifests, experiment="stage1", losses=[{"type": "cross_entropy"}], **places))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
