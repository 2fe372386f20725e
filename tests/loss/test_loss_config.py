import math
import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from handclip.config.losses import LOSS_TYPES, LossConfig, parse_loss, suggest_loss
from handclip.errors import ConfigError


def test_every_type_builds_from_its_name_alone():
    for name, model in LOSS_TYPES.items():
        config = TypeAdapter(LossConfig).validate_python({"type": name})
        assert type(config) is model
        assert config.weight == (5e-4 if name == "center" else 1.0)
        assert parse_loss({"type": name}, "losses[0]") == config == model()


def test_a_dumped_loss_is_read_back():
    for name in LOSS_TYPES:
        options = {"type": name, "soft": True} if name == "triplet" else {"type": name}
        config = parse_loss(options, "losses[0]")
        assert parse_loss(config.model_dump(), "losses[0]") == config


def test_which_losses_compare_images_and_which_classify():
    assert {name for name, model in LOSS_TYPES.items() if model.needs_positives} == {
        "triplet", "supcon", "circle", "multi_similarity",
    }  # fmt: skip
    assert {name for name, model in LOSS_TYPES.items() if model.uses_classifier} == {
        "cross_entropy", "arcface", "cosface", "subcenter_arcface",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("CE", "cross_entropy"), ("cross-entropy", "cross_entropy"), ("tri", "triplet"),
        ("Triplet", "triplet"), ("tripplet", "triplet"), ("arc_face", "arcface"), ("centre", "center"),
    ],
)  # fmt: skip
def test_an_unknown_loss_names_the_nearest(given, meant):
    assert suggest_loss(given) == f" Did you mean '{meant}'?"
    with pytest.raises(ConfigError, match=rf"losses\[2\]\.type: there is no loss '{given}'. Did you mean '{meant}'\?"):
        parse_loss({"type": given}, "losses[2]")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"type": "triplet", "margn": 1}, r"unknown key 'losses\[0\].margn' of loss 'triplet'. Did you mean 'margin'"),
        ({"margin": 1}, r"losses\[0\]: needs a type"),
        ("triplet", r"losses\[0\]: needs a type"),
        ({"type": "triplet", "margin": "wide"}, r"losses\[0\].margin: .*valid number"),
        ({"type": "triplet", "margin": -0.1}, r"losses\[0\].margin: .*greater than or equal to 0"),
        ({"type": "triplet", "margin": 0.5, "soft": True}, "'margin' has no effect with 'soft: true'"),
        ({"type": "cross_entropy", "weight": 0}, r"losses\[0\].weight: .*greater than 0"),
        ({"type": "cross_entropy", "weight": math.inf}, r"losses\[0\].weight: .*finite"),
        ({"type": "cross_entropy", "weight": math.nan}, r"losses\[0\].weight: "),
        ({"type": "cross_entropy", "label_smoothing": 1}, r"losses\[0\].label_smoothing: .*less than 1"),
        ({"type": "arcface", "margin": 28.65}, r"losses\[0\].margin: .*in radians"),
        ({"type": "arcface", "margin": math.nan}, r"losses\[0\].margin: .*finite"),
        ({"type": "subcenter_arcface", "margin": 28.6}, r"losses\[0\].margin: .*in radians"),
        ({"type": "subcenter_arcface", "sub_centers": 0}, r"losses\[0\].sub_centers: .*greater than or equal to 1"),
    ],
)
def test_a_wrong_option_is_named(loss, message):
    with pytest.raises(ConfigError, match=message):
        parse_loss(loss, "losses[0]")


def test_options_cannot_be_changed():
    config = parse_loss({"type": "arcface"}, "losses[0]")
    with pytest.raises(ValidationError):
        config.scale = 64.0


def test_configs_do_not_import_torch():
    code = "import sys, handclip.config.losses; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
