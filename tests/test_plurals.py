import pytest

from handclip.plurals import counted


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 people"), (1, "1 person"), (2, "2 people"), (2101, "2,101 people")]
)
def test_a_number_has_its_noun(number: int, text: str) -> None:
    assert counted(number, "person", "people") == text


def test_most_plurals_are_regular() -> None:
    assert [counted(number, "run") for number in (0, 1, 1000)] == ["0 runs", "1 run", "1,000 runs"]
