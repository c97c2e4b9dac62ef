"""The text of a page: clean words, lines and sentences, titles without labels, and words taken out."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smart_train.ingest.questions.page_text import (
    bare,
    clean,
    find,
    lines,
    sentences,
    squeeze,
    unlabelled,
    without,
    words,
)


def test_divided_words_ligatures_and_quotes_are_made_plain():
    assert clean("the R man\x02uals, ex\u00ad\r\ntended by ﬁve “good” people’s  work") == (
        'the R manuals, extended by five "good" people\'s work'
    )
    assert [line.text for line in lines("one man\x02\r\nual\r\n\r\n two\n")] == ["one manual", "two"]
    assert words("as.data.frame isn't 3.5 of x2") == ["as.data.frame", "isn't", "of", "x"]
    assert len(words("如何在冬天修理这个铜壶")) == 6
    assert squeeze("Caf\u00e9 – Müller’s") == squeeze("CAFE\u0301 mu\u0308ller's") == "cafemullers"


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("2.1.3 Repairing windows", "Repairing windows"),
        ("Chapter 12: Repairing windows", "Repairing windows"),
        ("Appendix B. Repairing windows", "Repairing windows"),
        ("IV. Repairing windows", "Repairing windows"),
        ("• Repairing windows", "Repairing windows"),
        ("3 Repairing windows . . . . . . . . 12", "Repairing windows"),
        ("Chapterhouse repairs", "Chapterhouse repairs"),
        ("3D printing of windows", "3D printing of windows"),
        ("C++ for window makers", "C++ for window makers"),
        ("A broken window", "A broken window"),
        ("I repair windows", "I repair windows"),
    ],
)
def test_labels_are_taken_off_and_words_are_not(line, title):
    assert unlabelled(line) == title
    assert bare(f"{title} 17") == bare(line)


def test_sentences_end_at_marks_and_not_at_abbreviations():
    text = "See e.g. the kettle of Mr. Smith. It cost 3.50 in all! Did it? J. Doe\nsays no. Then no. 7 left."
    assert [s.text for s in sentences(text)] == [
        "See e.g. the kettle of Mr. Smith.",
        "It cost 3.50 in all!",
        "Did it?",
        "J. Doe says no.",
        "Then no. 7 left.",
    ]
    assert all(text[s.start : s.end].strip() and clean(text[s.start : s.end]) == s.text for s in sentences(text))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab-é \n\x02.1", max_size=40), st.text(alphabet="abé ", min_size=1, max_size=5))
def test_finding_whole_words_agrees_with_a_regular_expression(text, wanted):
    """On texts without divided words: a pattern of the wanted letters, with marks and spaces allowed between."""
    plain = text.replace("\x02", "")
    letters = squeeze(wanted)
    found = find(plain, [wanted])
    if not letters:
        assert found == []
        return
    folded = plain.casefold().replace("é", "e")
    pattern = "(?<![^\\W_])" + "[\\W_]*".join(map(re.escape, letters)) + "(?![^\\W_])"
    covered = {i for a, b in found for i in range(a, b)}
    expected = {i for start in range(len(folded)) if (m := re.compile(pattern).match(folded, start))
                for i in range(m.start(), m.end())}  # fmt: skip
    assert covered == expected


def test_taking_words_out_leaves_every_other_character():
    text = "2.1 The copper ket-\ntle\nOur  copper\tkettle, the old coppersmith said.\nAnother  line\r\n"
    assert without(text, ["the copper kettle"], set()) == (
        "Our  copper\tkettle, the old coppersmith said.\nAnother  line"
    )
    assert without(text, ["copper kettle"], set()).splitlines()[-2:] == [
        "Our  , the old coppersmith said.",
        "Another  line",
    ]
    assert without(text, ["silver"], {"gold"}) == text
    assert without("man\x02uals of old\nx", ["manuals of"], set()) == "old\nx"
    assert "nother" not in without(text, [], {squeeze("Another line")})
