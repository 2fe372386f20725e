"""CNNs through the same commands as CLIP's models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_study import LOSSES, tiny_values, write_config

Handclip = Callable[..., Any]


def values(manifests: Path, **changes: Any) -> dict[str, Any]:
    return tiny_values(manifests, model="mbanet_small", neck="hidden", epochs=1, **changes)


@pytest.mark.parametrize("reading", ["published", "intended"])
def test_mbanet_trains_and_is_evaluated(reading: str, handclip: Handclip, manifests: Path, here: Path) -> None:
    changes = {"relative_position": reading, "losses": LOSSES["ce_triplet"]}
    config = write_config(here / "mbanet.yml", values(manifests, **changes))
    trained = handclip("train", config)
    assert trained.code == 0, trained.err
    for branch in ("global", "spatial", "channel"):
        assert f"{branch}/cross_entropy" in trained.err and f"{branch}/triplet" in trained.err
    assert handclip("evaluate", config).code == 0
    [path] = here.glob("eval_logs/*/metrics.json")
    metrics = json.loads(path.read_text())
    assert (metrics["model"], metrics["feature_dim"]) == ("mbanet_small", 3 * 512)
    assert metrics["settings"]["test_feature"] == "before_neck"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": "both"}, "embedding: has no effect on mbanet_small; only CLIP's models read it"),
        ({"pretrained": "openai"}, "pretrained: 'openai' is neither a file nor a set of weights of mbanet_small."),
        ({"input_size": [64, 32]}, "input_size: 64x32 gives a map of 4x2, and relative_position: published needs"),
        ({"losses": [{"type": "triplet"}]}, "neck: it feeds classifiers, and no loss here has one"),
    ],
)
def test_what_mbanet_cannot_do_is_explained(
    changes: dict[str, Any], message: str, handclip: Handclip, manifests: Path, here: Path
) -> None:
    answer = handclip("train", write_config(here / "mbanet.yml", values(manifests, **changes)))
    assert answer.code == 2 and message in answer.err
    assert not list(here.glob("train_logs/*")) and not list(here.glob("saved_models/*"))


def test_a_checkpoint_with_another_neck_is_another_model(handclip: Handclip, manifests: Path, here: Path) -> None:
    assert handclip("train", write_config(here / "a.yml", values(manifests))).code == 0
    [checkpoint] = [path for path in here.glob("saved_models/*.pth") if not path.stem.endswith("_last")]
    changes = {"neck": "bnneck", "checkpoint": str(checkpoint)}
    answer = handclip("evaluate", write_config(here / "b.yml", {**values(manifests), **changes}))
    assert answer.code == 1 and "was trained with neck: hidden, but the config says neck: bnneck" in answer.err
