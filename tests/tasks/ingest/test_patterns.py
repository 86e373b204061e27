from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import DatasetError
from tasks.ingest.patterns import expand_braces, glob_to_regex, has_braces, has_glob, literal_prefix


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("*.jpg", ["a.jpg", ".hidden.jpg", ".jpg", "a b#%.jpg"], ["x/a.jpg", "a.jpgx", "a.JPG"]),
        ("a/*/c.png", ["a/b/c.png", "a/.b/c.png"], ["a/c.png", "a/b/b/c.png"]),
        ("**/*.png", ["a.png", "x/y/a.png"], ["a.jpg"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab", "a/xb"]),
        ("a/**", ["a/b", "a/b/c"], ["b/a", "a"]),
        ("img?.png", ["img1.png", "img?.png", "imgü.png"], ["img.png", "img12.png", "img/.png"]),
        ("[ab]x", ["ax", "bx"], ["cx", "abx"]),
        ("[a-c]x", ["bx"], ["dx", "-x"]),
        ("[!a-c]x", ["dx", "-x"], ["bx", "/x"]),
        ("[]]x", ["]x"], ["x"]),
        ("[*]x", ["*x"], ["ax"]),
        ("[c-a]x", [], ["ax", "bx", "cx", "-x"]),
        ("a[x", ["a[x"], ["ax"]),
        ("a+(b).$^", ["a+(b).$^"], ["aab"]),
        ("*", ["line\nbreak", "ж"], ["a/b", "line\nbreak/x"]),
    ],
)
def test_a_glob_matches_what_its_table_says(pattern: str, matching: list[str], other: list[str]) -> None:
    matches = glob_to_regex(pattern).fullmatch
    assert [name for name in matching if not matches(name)] == []
    assert [name for name in other if matches(name)] == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("s-{08..10}.tar", ["s-08.tar", "s-09.tar", "s-10.tar"]),
        ("s-{8..10}.tar", ["s-8.tar", "s-9.tar", "s-10.tar"]),
        ("s-{000..002}", ["s-000", "s-001", "s-002"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{-1..1}", ["-1", "0", "1"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("x{a,}y", ["xay", "xy"]),
        ("{only}", ["{only}"]),
        ("plain", ["plain"]),
        ("{{a,b}}", ["{a}", "{b}"]),
    ],
)
def test_braces_expand_as_in_a_shell(text: str, names: list[str]) -> None:
    assert list(expand_braces(text)) == names


def test_too_many_alternatives_are_one_clear_error() -> None:
    with pytest.raises(DatasetError, match="2,000,000"):
        next(expand_braces("s-{1..2000000}.tar"))


@given(st.text(st.characters(exclude_characters="*?[{},"), max_size=20))
def test_text_without_special_characters_matches_itself_alone(text: str) -> None:
    assert not has_glob(text)
    assert not has_braces(text)
    assert literal_prefix(text) == text
    assert glob_to_regex(text).fullmatch(text)
    assert not glob_to_regex(text).fullmatch(text + "x")


@given(st.text(max_size=12))
def test_any_text_is_a_pattern_that_compiles(text: str) -> None:
    glob_to_regex(text).fullmatch("x")
