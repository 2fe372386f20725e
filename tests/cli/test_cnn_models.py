"""CNNs through the same commands as CLIP's models."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Handclip, changes
from tiny_study import LOSSES, tiny_values, write_config


def values(manifests: Path, **changes: Any) -> dict[str, Any]:
    return tiny_values(manifests, model="mbanet_small", neck="hidden", epochs=1, **changes)


@pytest.mark.parametrize("reading", ["published", "intended"])
def test_mbanet_trains_and_is_evaluated(reading: str, handclip: Handclip, manifests: Path, here: Path) -> None:
    own = values(manifests, relative_position=reading, losses=LOSSES["ce_triplet"])
    config = write_config(here / "mbanet.yml", own)
    trained = handclip.ok("train", config)
    for branch in ("global", "spatial", "channel"):
        assert f"{branch}/cross_entropy" in trained.err and f"{branch}/triplet" in trained.err
    handclip.ok("evaluate", config)
    [path] = here.glob("eval_logs/*/metrics.json")
    metrics = json.loads(path.read_text())
    assert (metrics["model"], metrics["feature_dim"]) == ("mbanet_small", 3 * 512)
    assert metrics["settings"]["test_feature"] == "before_neck"
    other = changes(neck="bnneck", checkpoint=metrics["checkpoint"])
    said = handclip.refused("evaluate", config, *other, code=1)
    assert "was trained with neck: hidden, but the config says neck: bnneck" in said


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"embedding": "both"}, "embedding: has no effect on mbanet_small; only CLIP's models read it"),
        ({"pretrained": "openai"}, "pretrained: 'openai' is neither a file nor a set of weights of mbanet_small."),
        ({"input_size": [64, 32]}, "input_size: 64x32 gives a map of 4x2, and relative_position: published needs"),
        ({"losses": [{"type": "triplet"}]}, "neck: it feeds classifiers, and no loss here has one"),
    ],
)
def test_what_mbanet_cannot_do_is_explained(
    wrong: dict[str, Any], message: str, handclip: Handclip, manifests: Path, here: Path
) -> None:
    assert message in handclip.refused("train", write_config(here / "mbanet.yml", values(manifests, **wrong)))
    assert not list(here.glob("train_logs/*")) and not list(here.glob("saved_models/*"))
