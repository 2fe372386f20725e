from typing import Any

import pytest

from handclip.report.evaluation_log import evaluation_text

pytestmark = pytest.mark.promise("rates-say-of-what")

MEANS = {"rank1": 0.5, "rank5": 0.75, "rank10": 1.0, "map": 0.61234, "map_trapezoid": 0.55617}
STDS = {"rank1": 0.0125, "rank5": 0.02, "rank10": 0.0, "map": 0.03141, "map_trapezoid": 0.0271}


def test_one_evaluation_as_text() -> None:
    text = evaluation_text(METRICS, {"Config": "a.yml"})
    for line in (
        "Experiment run:   run_a",
        "Config:           a.yml",
        "Experiment:       stage0_baseline",
        "Variant:          baseline",
        "Checkpoint:       none (baseline)",
        "Gallery protocol: gallery; flip: none; AP: plain and trapezoid\n",
        "  Split  1/1: Rank-1  50.00 %  Rank-5  75.00 %  Rank-10 100.00 %  mAP  61.23 %  mAP trapezoid  55.62 %"
        "  of 1,000 queries\n",
        "mAP trapezoid  55.62 %  of 1,000 queries each\n",
        "  Ties: in 3 of 1,000 queries a wrong image scores the same as the best right one and counts as ranked before",
        "  Copies: in 4 of 1,002 queries the gallery holds the very same photograph, whose rank",
        "  Std:         Rank-1   1.25 %",
        "  Left out: 2 queries without a relevant gallery image",
    ):
        assert line in text


def test_a_training_that_had_not_ended_is_said() -> None:
    text = evaluation_text({**METRICS, "training_ended": False, "trained_epochs": 2})
    assert "Training:         had not ended; this is the best model until then, of epoch 2\n" in text
    for ended in (True, None):
        assert "had not ended" not in evaluation_text({**METRICS, "training_ended": ended})


def test_what_makes_numbers_incomparable_stands_beside_them() -> None:
    trained_on = {"dataset": "11k", "aspect": "dorsal_r", "manifest_sha256": "f" * 64}
    changes = {"cross_domain": True, "trained_on": trained_on, "rerank": {"k1": 20, "k2": 6, "lambda": 0.3}}
    text = evaluation_text({**METRICS, **changes}, {})
    assert "trained on 11k dorsal_r (manifest ffffffffffff)" in text
    assert text.count("re-ranked (k-reciprocal, k1 20, k2 6, lambda 0.3)") == 2


_ENTRY = {
    "gallery_protocol": "gallery",
    "flip": "none",
    "num_splits": 1,
    "mean": MEANS,
    "std": STDS,
    "splits": [MEANS],
    "gallery_images": [71],
    "queries": 1_002,
    "matched_queries": [1_000],
    "unmatched_queries": 2,
    "tied_queries": 3,
    "copied_queries": 4,
}
METRICS: dict[str, Any] = {
    "run": "run_a",
    "experiment": "stage0_baseline",
    "variant": "baseline",
    "dataset": "11k",
    "aspect": "dorsal_r",
    "model": "vitb16",
    "checkpoint": None,
    "manifest_sha256": "0123456789abcdef",
    "distinct_images": 1234,
    "seconds": 1.5,
    "cross_domain": False,
    "trained_on": None,
    "rerank": None,
    "training_ended": None,
    "results": [_ENTRY],
}
