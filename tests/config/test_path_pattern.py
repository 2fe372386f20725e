import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handclip.config.loading import parse_config
from handclip.config.path_pattern import PathPattern
from handclip.errors import ConfigError


def read(pattern: str, path: str, *, longest: bool = True) -> dict[str, str] | None:
    return PathPattern(pattern).match(path.split("/"), longest=longest)


@pytest.mark.parametrize(
    ("pattern", "path", "values"),
    [
        ("{identity}/*", "anna/1.jpg", {"identity": "anna"}),
        ("{identity}/{session}/*", "anna/day 1/1.jpg", {"identity": "anna", "session": "day 1"}),
        ("{identity}_{n}.bmp", "012_3.bmp", {"identity": "012", "n": "3"}),
        ("{identity}_{n}.bmp", "012_3.png", None),
        ("{identity}_{n}.bmp", "012.bmp", None),
        ("{identity}_{n}.bmp", "_3.bmp", None),
        ("{identity}_*", "anna_", {"identity": "anna"}),
        ("session1/{identity}/*", "session1/anna/1.jpg", {"identity": "anna"}),
        ("session1/{identity}/*", "session2/anna/1.jpg", None),
        ("{side}/{identity}-*", "left/王芳-1.jpg", {"side": "left", "identity": "王芳"}),
        ("P[1]{identity}.*", "P[1]7.jpg", {"identity": "7"}),
        ("{identity}/{identity}_{n}.jpg", "a_b/a_b_1.jpg", {"identity": "a_b", "n": "1"}),
        ("{identity}/{identity}_{n}.jpg", "anna/boris_1.jpg", None),
        ("{identity}/*", "anna/day1/1.jpg", None),
    ],
)
def test_what_a_path_says(pattern: str, path: str, values: dict[str, str] | None) -> None:
    assert read(pattern, path) == values


def test_a_folder_on_the_way_is_read_by_the_first_parts() -> None:
    assert read("{identity}/{session}/*", "anna") == {"identity": "anna"}
    assert read("{session}/{identity}_*", "day1") == {"session": "day1"}
    assert PathPattern("{session}/{identity}_*").levels == 2


@pytest.mark.parametrize(
    ("pattern", "path", "longest", "shortest"),
    [
        ("{identity}_{n}.bmp", "anna_lee_2.bmp", ("anna_lee", "2"), ("anna", "lee_2")),
        ("{identity}_{n}.bmp", "a__b.bmp", ("a_", "b"), ("a", "_b")),
        ("{n}_{identity}.bmp", "1_anna_lee.bmp", ("lee", "1_anna"), ("anna_lee", "1")),
    ],
)
def test_what_can_be_read_in_several_ways(
    pattern: str, path: str, longest: tuple[str, str], shortest: tuple[str, str]
) -> None:
    assert read(pattern, path) == dict(zip(("identity", "n"), longest, strict=True))
    assert read(pattern, path, longest=False) == dict(zip(("identity", "n"), shortest, strict=True))


_TEXTS = st.sampled_from(["_", "a", "_a", "aa", "-"])
_WILDCARDS = st.sampled_from(["*", "{x}", "{y}"])


@settings(derandomize=True, deadline=None, max_examples=1000)
@given(
    st.lists(st.tuples(_WILDCARDS, _TEXTS), max_size=3, unique_by=lambda part: part[0]),
    st.sampled_from(["", "_", "a"]),
    st.sampled_from(["", "_", "a"]),
    st.text("a_-", max_size=9),
)
def test_names_are_divided_as_regular_expressions_divide_them(
    parts: list[tuple[str, str]], first: str, last: str, name: str
) -> None:
    pattern = first + "".join(wildcard + text for wildcard, text in parts) + "{identity}" + last
    for longest in (True, False):
        lazy = "" if longest else "?"
        expression = re.escape(pattern).replace(r"\*", f".*{lazy}")
        expression = re.sub(r"\\\{(\w+)\\\}", rf"(?P<\1>.+{lazy})", expression)
        found = re.fullmatch(expression, name)
        assert read(pattern, name, longest=longest) == (found and found.groupdict())


def test_a_hostile_name_takes_no_time() -> None:
    start = time.perf_counter()
    assert read("_".join(["{identity}", *(f"{{a{n}}}" for n in range(12))]) + ".bmp", "_" * 250 + ".bm") is None
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{session}/*", "does not say where the identity stands"),
        ("", "without a slash at either end"),
        ("/{identity}/*", "without a slash at either end"),
        ("../{identity}/*", "without . and .."),
        ("{identity/*", "holds braces that are not around a name"),
        ("{identity}/{}", "holds braces that are not around a name"),
        ("{identity}/{a b}", "holds braces that are not around a name"),
        ("{identity}{n}.bmp", "two wildcards side by side"),
        ("{identity}/**", "two wildcards side by side"),
        ("{identity}_{identity}.bmp", "names a wildcard twice"),
    ],
)
def test_what_is_no_pattern(pattern: str, said: str) -> None:
    values = {"experiment": "a", "model": "vitb16", "dataset": "folder", "data_root": "x"}
    with pytest.raises(ConfigError, match=rf"test: pattern: .*{re.escape(said)}"):
        parse_config({**values, "pattern": pattern}, "test")
    with pytest.raises(ConfigError, match="pattern: is read only with dataset: folder"):
        parse_config({**values, "dataset": "hd", "pattern": "{identity}/*"}, "test")
