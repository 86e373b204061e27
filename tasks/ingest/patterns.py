"""Globs and brace expansion over keys.

    *                     any run of characters but /
    **                    any run, / included; a/**/b also matches a/b
    ?                     one character but /
    [abc] [a-z] [!a]      one of a set; [*] is a literal star
    {a,b} {000..099}      alternatives

A leading dot is a character like any other: object stores know no hidden keys. A source that exists under exactly
its own name is never read as a pattern (the caller checks that first).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from infra.errors import DatasetError

MAX_ALTERNATIVES = 1_000_000

_MAGIC = re.compile(r"[*?\[]")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")


def has_glob(text: str) -> bool:
    """Whether ``text`` holds a character that only a glob needs."""
    return _MAGIC.search(text) is not None


def has_braces(text: str) -> bool:
    """Whether ``text`` holds a brace group with at least two alternatives."""
    return any("," in group or _RANGE.fullmatch(group) for group in _BRACES.findall(text))


def expand_braces(text: str) -> Iterator[str]:
    """Every alternative, e.g. ``s-{08..10}.tar`` -> ``s-08.tar``, ``s-09.tar``, ``s-10.tar``; groups without a comma or
    a range stay as they are.

    Raises:
        DatasetError: more than a million alternatives (most likely a slip in the numbers).
    """
    parts: list[list[str] | range] = []
    formats: list[str] = []
    position = total = 0
    for match in _BRACES.finditer(text):
        group = _alternatives(match[1])
        if group is None:
            continue
        values, form = group
        parts += [[text[position : match.start()]], values]
        formats += ["{}", form]
        position = match.end()
        total = max(total, 1) * len(values)
    if total > MAX_ALTERNATIVES:
        raise DatasetError(f"the braces in {text!r} stand for {total:,} names", hint="Check the range's ends.")
    parts.append([text[position:]])
    formats.append("{}")
    for chosen in itertools.product(*parts):
        yield "".join(form.format(value) for form, value in zip(formats, chosen, strict=True))


def _alternatives(group: str) -> tuple[list[str] | range, str] | None:
    """The values of one brace group and how to print one."""
    if match := _RANGE.fullmatch(group):
        first, last = int(match[1]), int(match[2])
        padded = any(len(end.lstrip("-")) > 1 and end.lstrip("-").startswith("0") for end in match.groups())
        width = max(len(match[1]), len(match[2])) if padded else 0
        step = 1 if last >= first else -1
        return range(first, last + step, step), f"{{:0{width}d}}"
    return (group.split(","), "{}") if "," in group else None


def literal_prefix(pattern: str) -> str:
    """The characters before the first special one: what a listing can be narrowed to."""
    match = _MAGIC.search(pattern)
    return pattern if match is None else pattern[: match.start()]


def glob_to_regex(pattern: str) -> re.Pattern[str]:
    """A compiled expression for ``fullmatch``; newlines in keys are characters like any other."""
    out: list[str] = []
    position = 0
    while position < len(pattern):
        text, position = _translate(pattern, position)
        out.append(text)
    return re.compile("".join(out), re.DOTALL)


def _translate(pattern: str, at: int) -> tuple[str, int]:
    """The expression of the element that starts at ``at``, and where the next one starts."""
    char = pattern[at]
    if char == "*":
        if pattern.startswith("**/", at) and (at == 0 or pattern[at - 1] == "/"):
            return "(?:.*/)?", at + 3
        return (".*", at + 2) if pattern.startswith("**", at) else ("[^/]*", at + 1)
    if char == "?":
        return "[^/]", at + 1
    if char == "[":
        negated = pattern.startswith("!", at + 1)
        start = at + 1 + negated
        end = pattern.find("]", start + 1)  # a bracket right after the opening one is a member of the set
        if end > 0:
            return _character_set(pattern[start:end], negated), end + 1
    return re.escape(char), at + 1


def _character_set(members: str, negated: bool) -> str:
    """``a-z`` stays a range (an inverted one matches nothing), everything else is itself."""
    escaped = ""
    at = 0
    while at < len(members):
        if at + 2 < len(members) and members[at + 1] == "-":
            low, high = members[at], members[at + 2]
            escaped += f"{re.escape(low)}-{re.escape(high)}" if low <= high else ""
            at += 3
        else:
            escaped += re.escape(members[at])
            at += 1
    if not escaped:
        return "[^/]" if negated else "(?!)"
    return f"(?!/)[^{escaped}]" if negated else f"(?!/)[{escaped}]"
