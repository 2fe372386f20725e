from collections import Counter

import pytest

from handclip.report.published import PublishedResult, published_results

RESULTS = published_results()


def found(method: str) -> PublishedResult:
    of_data = [(one, one.protocol) for one in RESULTS if one.method == method and one.protocol.trained_on is None]
    [result] = [one for one, protocol in of_data if (protocol.dataset, protocol.aspect) == ("11k", "dorsal_r")]
    return result


@pytest.mark.parametrize(
    ("method", "rank1", "plain", "trapezoid"),
    [
        ("MBA-Net", 97.45, 98.51, 97.98),
        ("CLIP-FH stage 2 v5 ViT-B/16", 88.18, 92.20, 90.19),
        ("zero-shot CLIP ViT-B/16", 70.44, 78.18, 74.31),
        ("CLIP-FH stage 1 ViT-B/16", 93.69, 95.58, 94.64),
    ],
)
def test_converted_rows_are_those_worked_out_by_hand(method: str, rank1: float, plain: float, trapezoid: float) -> None:
    scores = found(method).scores
    assert scores["rank1"] == pytest.approx(rank1 / 100)
    assert scores["map"] == pytest.approx(plain / 100, abs=5.1e-5)
    assert scores["map_trapezoid"] == pytest.approx(trapezoid / 100, abs=5.1e-5)


def test_d45_every_row_is_possible() -> None:
    """mAP below Rank-1 is the mark of a bug; with one relevant image the identity holds exactly."""
    for result in RESULTS:
        scores = result.scores
        if result.method == "CLIP-HandID":
            assert (set(scores.values()), result.converted) == ({None}, None)
            continue
        assert result.converted == {"plain": "map_trapezoid", "trapezoid": "map"}[result.ap_convention], result
        assert 2 * scores["map_trapezoid"] == pytest.approx(scores["rank1"] + scores["map"], abs=2e-6), result
        known = [scores[name] for name in ("rank1", "rank5", "rank10") if scores[name] is not None]
        assert known == sorted(known), result
        assert scores["rank1"] <= scores["map_trapezoid"] <= scores["map"] <= 1, result


def test_all_usable_rows_are_there_with_their_source() -> None:
    assert all(result.source for result in RESULTS)
    protocols = [(one.protocol, one.ap_convention) for one in RESULTS]
    assert Counter((p.dataset, p.gallery_protocol, ap, p.flip, str(p.trained_on)) for p, ap in protocols) == {
        ("11k", "gallery_all", "trapezoid", "sum", "None"): 5 * 4 + 2,
        ("hd", "gallery", "trapezoid", "sum", "None"): 5,
        ("hd", "gallery", "trapezoid", "sum", "11k dorsal_r"): 4,
        ("11k", "gallery", "plain", "none", "None"): 12 + 2 + 1 + 18 + 20,
        ("11k", "gallery_all", "plain", "none", "None"): 1,
    }
    assert len({(result.method, result.protocol) for result in RESULTS}) == len(RESULTS)


def test_galleries_are_those_of_the_whole_data_sets() -> None:
    protocols = [(one.protocol, one.queries) for one in RESULTS]
    sizes = {(p.dataset, p.aspect, p.gallery_protocol): (*p.gallery_images, queries) for p, queries in protocols}
    aspects = {"dorsal_r": (71, 971), "dorsal_l": (73, 988), "palmar_r": (71, 917), "palmar_l": (75, 948)}
    assert sizes == {
        **{("11k", aspect, "gallery"): size for aspect, size in aspects.items()},
        **{("11k", aspect, "gallery_all"): (290, queries) for aspect, (_, queries) in aspects.items()},
        ("hd", "dorsal", "gallery"): (1593, 1992),
    }


@pytest.mark.parametrize(
    ("method", "note"),
    [
        ("CLIP-FH stage 2 v5 ViT-B/16", "An artefact"),
        ("CLIP-FH stage 3 v8 ViT-B/16", "An artefact"),
        ("zero-shot CLIP RN50", "cropped in the centre"),
        ("zero-shot CLIP ViT-B/16", "cropped in the centre"),
    ],
)
def test_artefacts_are_named(method: str, note: str) -> None:
    assert note in found(method).note
    assert found("MBA-Net").note == ""
