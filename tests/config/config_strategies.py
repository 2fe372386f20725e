"""Hypothesis strategies for experiments."""

from types import NoneType
from typing import Any, Literal, get_args, get_origin

from hypothesis import strategies as st

from handclip.config.experiment import ExperimentConfig
from handclip.config.loading import parse_config
from handclip.errors import ConfigError

_LOSS = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("cross_entropy")}, optional={"label_smoothing": st.sampled_from([0.0, 0.1])}
    ),
    st.fixed_dictionaries(
        {"type": st.just("triplet")}, optional={"margin": st.sampled_from([0.3, 0.5]), "weight": st.just(2.0)}
    ),
    st.fixed_dictionaries(
        {"type": st.just("center")}, optional={"lr": st.sampled_from([0.5, 0.1]), "normalize": st.booleans()}
    ),
    st.fixed_dictionaries({"type": st.just("arcface")}, optional={"scale": st.sampled_from([30, 64])}),
)


def _choices(annotation: Any) -> st.SearchStrategy[Any] | None:
    """Return the strategy of a key that has but a few values."""
    if annotation is bool:
        return st.booleans()
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    word, nothing = (*get_args(annotation), None, None)[:2]
    return st.none() | st.sampled_from(get_args(word)) if get_origin(word) is Literal and nothing is NoneType else None


_FIELDS = ExperimentConfig.model_fields
_KEYS: dict[str, st.SearchStrategy[Any]] = {
    **{key: few for key, field in _FIELDS.items() if (few := _choices(field.annotation)) is not None},
    "experiment": st.sampled_from(["a", "a_coca", "a_vitb16", "a_11k_all", "stage1_frozen_text", "x-1.0"]),
    "model": st.sampled_from(
        ["vitb16", "vit_small", "coca_ViT-B-32", "ViT-B-32", "RN50", "rn50", "convnext_base_w", "mbanet_small"]
    ),
    "dataset": st.sampled_from(["11k", "hd", "HD", "synthetic", "folder"]),
    "seed": st.integers(0, 12),
    "data_root": st.sampled_from([None, "datasets/11k", "a/b", "a_b", "x"]),
    "manifest": st.sampled_from([None, "m.json", "m/{aspect}"]),
    "pattern": st.sampled_from([None, "{identity}/{session}/*", "{identity}_{n}.bmp"]),
    "pretrained": st.sampled_from(["openai", "none", "a.pt", "a-pt", "weights/ViT_B.pt"]),
    "pretrained_tag": st.sampled_from([None, "openai", "laion2b_s32b_b82k"]),
    "quick_gelu": st.sampled_from(["auto", True, False]),
    "input_size": st.sampled_from([None, 112, 224, (224, 128), (128, 224)]),
    "input_mean": st.sampled_from([None, (0.5, 0.5, 0.5), (0.5, 0.5, 0.4)]),
    "input_std": st.sampled_from([None, (0.5, 0.5, 0.5), (1, 1, 1)]),
    "freeze": st.sampled_from(["none", "all", "all_but_last_1", "all_but_last_11"]),
    "resume_from": st.sampled_from([None, "saved_models/a.pth", "saved_models/b.pth"]),
    "losses": st.lists(_LOSS, min_size=1, max_size=3),
    "epochs": st.integers(1, 60),
    "batch_size": st.sampled_from([8, 32, 64]),
    "images_per_identity": st.sampled_from([2, 4]),
    "lr": st.one_of(st.floats(1e-9, 100), st.sampled_from([1.0, 10.0, 100.0, 0.1, 0.01, 1e-5, 0.00001, 1e-4])),
    "backbone_lr_scale": st.sampled_from([0.0, 0.1, 1.0]),
    "weight_decay": st.sampled_from([0.0, 1e-4, 0.05]),
    "warmup_epochs": st.sampled_from([0, 0.5, 1]),
    "milestones": st.sampled_from([(20, 25), (10,), (1, 2)]),
    "gamma": st.sampled_from([0.1, 0.5]),
    "gradient_clip": st.sampled_from([0.0, 1.0, 5]),
    "augmentation": st.fixed_dictionaries(
        {}, optional={"flip": st.sampled_from([0.0, 0.5]), "erasing": st.sampled_from([0.0, 0.25])}
    ),
    "validation_interval": st.integers(1, 3),
    "early_stopping_patience": st.sampled_from([None, 3]),
    "checkpoint": st.sampled_from([None, "c.pth"]),
    "num_splits": st.integers(1, 10),
    "gallery_protocols": st.sampled_from([("gallery",), ("gallery", "gallery_all")]),
    "flip_settings": st.sampled_from([("none",), ("none", "sum")]),
    "rerank": st.sampled_from([None, {}, {"k1": 10, "lambda": 0.5}]),
    "eval_batch_size": st.sampled_from([1, 64]),
    "explained_images": st.sampled_from([0, 4]),
    "output_dir": st.sampled_from(["train_logs", "elsewhere"]),
    "save_dir": st.sampled_from(["saved_models", "elsewhere/{model}"]),
    "eval_dir": st.sampled_from(["eval_logs", "elsewhere"]),
    "device": st.sampled_from(["auto", "cpu", "cuda:1"]),
    "devices": st.sampled_from(["auto", 1, 2]),
    "num_nodes": st.sampled_from([1, 2]),
    "num_workers": st.sampled_from(["auto", 0, 3]),
    "pixel_cache_gib": st.sampled_from([0.0, 0.5]),
}
assert _KEYS.keys() == _FIELDS.keys()
REQUIRED = {"experiment", "model", "dataset"}


def values(**fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Keys and values of experiments, each valid by itself but not always together."""
    keys = {**_KEYS, **fixed}
    required = {key: strategy for key, strategy in keys.items() if key in REQUIRED}
    return st.fixed_dictionaries(required, optional={key: s for key, s in keys.items() if key not in REQUIRED})


@st.composite
def configs(draw: st.DrawFn) -> ExperimentConfig:
    """Valid experiments: keys that contradict the others are left out one by one."""
    wanted = draw(values())
    kept = {key: wanted[key] for key in REQUIRED}
    if kept["dataset"] == "folder":
        kept["data_root"] = "somewhere"
    for key in draw(st.permutations(sorted(wanted.keys() - REQUIRED))):
        try:
            parse_config({**kept, key: wanted[key]}, "test")
        except ConfigError:
            continue
        kept[key] = wanted[key]
    return parse_config(kept, "test")


@st.composite
def pairs(draw: st.DrawFn) -> tuple[ExperimentConfig, ExperimentConfig]:
    """Two valid experiments that differ in few keys, or in none."""
    one, other = draw(configs()), draw(configs())
    changed = draw(st.lists(st.sampled_from(sorted(_FIELDS)), max_size=3))
    wanted = other.to_dict()
    kept = one.to_dict()
    for key in changed:
        try:
            kept = parse_config({**kept, key: wanted[key]}, "test").to_dict()
        except ConfigError:
            continue
    return one, parse_config(kept, "test")
