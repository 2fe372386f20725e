"""CSV that a spreadsheet may open: nothing in it is run, and all of it is read back as it was."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip.csv_files import csv_rows, csv_table, csv_text, plain, safe

TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.lists(
        st.sampled_from(["'", "=", "+", "-", "@", "\t", "\r", "\n", "1", "e", ".", "a", ",", '"']), max_size=6
    ).map("".join),
)


@pytest.mark.promise("formulas")
@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(st.lists(TEXTS, min_size=2, max_size=4), max_size=4))
def test_any_text_is_read_back_exactly(rows: list[list[str]]) -> None:
    assert list(csv_rows(io.StringIO(csv_text(rows), newline=""))) == rows


@pytest.mark.promise("formulas")
@settings(derandomize=True, deadline=None, max_examples=500)
@given(TEXTS)
def test_no_cell_begins_a_formula_unless_it_is_a_number(text: str) -> None:
    [[_, cell]] = csv.reader(io.StringIO(csv_text([["x", text]]), newline=""))
    if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        float(cell)
    assert plain(cell) == text


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "@SUM(1+1)", "-x", "+1.jpg", "=1+1", "\t=1+1", "-1+1", "＝1+1", "'=1"]
)
def test_a_formula_is_marked_as_text(text: str) -> None:
    assert safe(text) == f"'{text}"
    assert plain(safe(text)) == text


@pytest.mark.parametrize("value", [-1, -0.5, np.float64(-0.25), np.int64(-3), "-1.5e-05", "+7", "a=b", "", None, True])
def test_numbers_and_plain_text_stay_as_they_are(value: object) -> None:
    assert safe(value) is value


def test_a_table_has_every_key_and_empty_cells() -> None:
    assert csv_table([{"a": 1}, {"b": "-x", "a": None}]) == "a,b\r\n1,\r\n,'-x\r\n"
    assert csv_table([], ["image"]) == "image\r\n"


def test_what_is_no_csv_is_refused() -> None:
    with pytest.raises(csv.Error):
        list(csv_rows(['a,"b"c\n']))
