from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.report.text import fact, moment, one_line, plain, rate, seconds, share

_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
unhurried = settings(deadline=None)  # a busy machine is no mistake of ours
_ANY = st.text(st.characters(codec=None))


@unhurried
@given(_ANY)
def test_no_text_can_steer_a_terminal_or_break_xml(text: str) -> None:
    shown = plain(text)
    assert not _STEERS.search(shown)
    element = ET.Element("a", b=shown)
    element.text = shown
    ET.fromstring(ET.tostring(element))  # noqa: S314 - made one line above


def test_the_steering_pattern_finds_what_it_must() -> None:
    for text in ("\x1b[31m", "\x00", "\x9b2J", "\u202eexe", "\ud800", "\ufffe"):
        assert _STEERS.search(text), ascii(text)
        assert not _STEERS.search(plain(text)), ascii(text)


@unhurried
@given(st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="\ufffd"), min_size=1))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


def test_an_escape_is_shown_not_swallowed() -> None:
    assert plain("a\x1b[31mb\r\nc\td\u2028e") == "a\\x1b[31mb\nc\td\\u2028e"


@unhurried
@given(_ANY, st.integers(1, 50))
def test_one_line_is_one_line_of_bounded_length(text: str, limit: int) -> None:
    flat = one_line(text, limit)
    assert "\n" not in flat
    assert len(flat) <= limit


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),  # noqa: RUF001 - an en dash is meant
        (float("nan"), "–"),  # noqa: RUF001 - an en dash is meant
        (float("inf"), "–"),  # noqa: RUF001 - an en dash is meant
        (0.0, "0 s"),
        (0.000412, "412 µs"),
        (0.0123, "12.3 ms"),
        (0.151, "151 ms"),
        (0.9999, "1.00 s"),
        (1.24, "1.24 s"),
        (104.2, "104 s"),
        (125.0, "2 min 05 s"),
        (3 * 3600 + 300, "3 h 05 min"),
    ],
)
def test_seconds_carry_a_unit_a_person_reads(value: float | None, shown: str) -> None:
    assert seconds(value) == shown


def test_less_than_all_is_never_shown_as_all() -> None:
    assert share(1.0) == "100 %"
    assert share(0.999999) == "99.99 %"
    assert share(0.0) == "0 %"
    assert share(None) == "–"  # noqa: RUF001 - an en dash is meant
    assert rate(12345.6) == "12,346"


def test_facts_of_any_shape_become_one_line() -> None:
    assert fact(["a", "b"]) == "a, b"
    assert fact({"a": [1, None]}) == '{"a": [1, null]}'
    assert fact(True) == "yes"
    assert fact(0.25) == "0.25"


def test_a_start_without_a_time_zone_is_taken_as_utc_and_rubbish_as_none() -> None:
    found = moment("2026-04-12T11:15:00+02:00")
    assert found is not None
    assert found.isoformat() == "2026-04-12T09:15:00+00:00"
    assert moment("2026-04-12T09:15:00") == found
    assert moment("yesterday") is None
