"""A document's own words: what becomes a question, what does not, and what is taken out of the texts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256

import pytest

from smart_train.core.errors import DataError
from smart_train.ingest.questions.own_words import OwnWordsOptions, mask, own_words
from smart_train.ingest.questions.page_text import squeeze

BODY = (
    "Copper kettles stand in the kitchen beside the window.\n"
    "In winter the harbour freezes and the ferries stay away,\n"
    "so that letters take a week longer than they would in summer.\n"
)


@dataclass(frozen=True)
class Entry:
    title: str
    level: int = 0


@dataclass(frozen=True)
class Sheet:
    """As pages.Page, without what own words do not look at."""

    file: str
    page: int
    text: str
    outline: tuple[Entry, ...] = ()
    title: str | None = None
    image: str | None = None
    kind: str = "pdf"
    id: str = ""
    hash: str = field(default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.id or f"{self.file}-{self.page:05d}")
        object.__setattr__(self, "hash", self.hash or sha256(f"{self.text}{self.image}".encode()).hexdigest())


def filler(number: int) -> str:
    """A body that no other page has."""
    return BODY + f"Ledger {chr(97 + number % 26)}{chr(97 + number // 26)} tells of barrel {number} and its owner.\n"


def book(*pages: str | tuple[str, tuple[str, ...]], file: str = "book.pdf") -> list[Sheet]:
    made = []
    for number, page in enumerate(pages, 1):
        text, outline = page if isinstance(page, tuple) else (page, ())
        made.append(Sheet(file, number, text, tuple(Entry(title) for title in outline)))
    return made


def asked(pages, **options) -> list[tuple[str, str, int]]:
    return [(q.rule, q.text, q.page) for q in own_words(pages, OwnWordsOptions(**options)).questions]


# ------------------------------------------------------------------------------------------------- the rules


def test_an_outline_entry_asks_for_the_page_it_points_to():
    pages = book(filler(0), ("3.2 Cleaning the copper kettle\n" + filler(1), ("Cleaning the copper kettle",)))
    written = own_words(pages)
    (question,) = written.questions
    assert (question.text, question.rule, question.page) == ("Cleaning the copper kettle", "outline", 2)
    assert (question.document, question.file) == ("book.pdf-00002", "book.pdf")
    assert question.source == "3.2 Cleaning the copper kettle"
    assert written.masked == {"book.pdf-00002": filler(1).strip()}
    assert written.counts == {"outline": 1, "heading: found by another rule": 1}


def test_a_short_bookmark_is_read_on_in_its_line():
    text = "28 kettle\nkettle Cleaning Copper by Hand\nDescription\n" + filler(0)
    assert asked(book((text, ("kettle",)))) == [("outline", "Cleaning Copper by Hand", 1)]
    # where the section of that name has a number, the name is all there is to it, and too short
    assert asked(book(("2.1 Kettle\nKettle Makers Were Poor\n" + filler(0), ("Kettle",)))) == []


def test_a_numbered_line_is_a_heading_where_there_is_no_outline():
    pages = book(
        "2.1 Repairing a broken window\n" + filler(0),
        "Chapter 4: Letters in the winter months\n" + filler(1),
        "A.3 Weights of the common barrels\n" + filler(2),
        "4 Ferries across the frozen harbour\n" + filler(3).capitalize(),
    )
    assert asked(pages) == [
        ("heading", "Repairing a broken window", 1),
        ("heading", "Letters in the winter months", 2),
        ("heading", "Weights of the common barrels", 3),
        ("heading", "Ferries across the frozen harbour", 4),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "1 Take the kettle down\n2 Polish the copper well\n3 Put the kettle back\n" + BODY,  # a list
        "2.1 Repairing a broken window . . . . . . 17\n" + BODY,  # a contents line
        "3.4 tons of copper were sold\n" + BODY,  # a number in a sentence
        "2.5 Then the ferry left the harbour.\n" + BODY,  # a numbered sentence
        "2.1 Repairing a window 17\n" + BODY,  # a running header
        BODY + "2.1 Repairing a broken window\n",  # nothing behind it
    ],
)
def test_lines_with_numbers_that_are_no_headings(text):
    assert asked(book(text)) == []


def test_single_numbers_are_not_believed_beside_an_outline():
    footnote = "4 Ferries across the frozen harbour\n"
    outlined = [(f"{n}.1 Story number {w} of many\n" + filler(n), (f"Story number {w} of many",)) for n, w in
                enumerate(["seven", "eight", "nine", "ten", "eleven"], 1)]  # fmt: skip
    assert ("heading", "Ferries across the frozen harbour", 1) in asked(book(footnote + filler(0)))
    found = asked(book(footnote + filler(0), *outlined))
    assert [rule for rule, _, _ in found] == ["outline"] * 5


def test_a_text_file_s_first_heading_is_its_title():
    page = Sheet("a.md", 1, "# How the ferries run\n" + BODY, (Entry("How the ferries run"),),
                 title="How the ferries run", kind="text")  # fmt: skip
    written = own_words([page])
    assert [(q.rule, q.text) for q in written.questions] == [("title", "How the ferries run")]
    assert written.masked[page.id] == BODY.strip()


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("2.3 How can the kettle be repaired?\n" + BODY, "How can the kettle be repaired?"),
        ("Q: Why does the harbour freeze?\nA: Because.\n" + BODY, "Why does the harbour freeze?"),
        ("How can the kettle be repaired when all of the\ncopper is gone?\n" + BODY,
         "How can the kettle be repaired when all of the copper is gone?"),
        ("¿Cómo se repara la tetera rota?\n" + BODY, "Cómo se repara la tetera rota?"),
        ("如何在冬天修理这个铜壶？\n" + BODY, "如何在冬天修理这个铜壶?"),
    ],
)  # fmt: skip
def test_a_line_that_asks_is_a_question(text, question):
    assert asked(book(text)) == [("question", question, 1)]


@pytest.mark.parametrize(
    "text",
    [
        BODY + "How can the kettle be repaired?\n",  # no answer behind it
        "is the kettle repaired or broken?\n" + BODY,
        "He came and asked everybody who stood there at the harbour that day\nHow is the kettle today? " + BODY,
        "He stood there on that day in the harbour for a long time and asked me\nWhere is it now, the kettle?\n" + BODY,
        "Kettle or no kettle, windows or none?\n" + BODY,
    ],
)
def test_question_marks_that_are_no_faq(text):
    assert asked(book(text)) == []


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("Figure 3: Ferries that left in winter.\n", "Ferries that left in winter"),
        ("FIG. 3.2. Ferries that left in winter\n", "Ferries that left in winter"),
        ("Table 2 Ferries that left in winter\n", "Ferries that left in winter"),
        ("Table IV\nFerries that left in winter\n", "Ferries that left in winter"),
        ("Abbildung 7 – Fähren, die im Winter fuhren\n", "Fähren, die im Winter fuhren"),
        ("Figure 3: Ferries that left in winter, counted by the\nharbour master each day. Grey: summer.\n",
         "Ferries that left in winter, counted by the harbour master each day"),
    ],
)  # fmt: skip
def test_a_caption_asks_for_its_page(text, caption):
    pages = book(filler(0), filler(1) + text + filler(2))
    assert asked(pages) == [("caption", caption, 2)]
    (left,) = own_words(pages).masked.values()
    assert squeeze(caption) not in squeeze(left) and not re.search(r"(?i)\b(fig|figure|table|abbildung)\b", left)
    assert left.startswith(filler(1).strip()) and left.endswith(filler(2).strip())


@pytest.mark.parametrize(
    "text",
    [
        "Figure 3 shows how the ferries ran in winter.\n",
        "Table 2 and all that follows is about ferries in winter.\n",
        "Figure 3: Ferries that left in winter . . . . . . . 12\n",
        "Figure 3: a b\n",
    ],
)
def test_sentences_about_figures_are_no_captions(text):
    assert asked(book(filler(1) + text + filler(2))) == []


def test_a_definition_stands_alone():
    says = "A harbour kettle is a copper vessel that the ferries carry for their tea."
    pages = book(filler(0), BODY + says + "\nThis is a sentence that leans on the one before and defines nothing.\n")
    assert asked(pages) == [("definition", says, 2)]
    rest = "\nThis is a sentence that leans on the one before and defines nothing."
    assert own_words(pages).masked == {"book.pdf-00002": BODY + rest}


@pytest.mark.parametrize(
    "sentence",
    [
        "It is a copper vessel that the ferries carry for their tea.",
        "The result is a copper vessel that the ferries carry for tea.",
        "A harbour kettle is a vessel as described above for the ferries.",
        "A harbour kettle is a vessel that is drawn in Figure 3 with care.",
        "A kettle <- vessel() is a call that the ferries make at four.",
        "Usually polishing copper is a task that the youngest have to do.",
        "A harbour kettle is a vessel.",
        "A large kettle is a good idea on any ferry that has many passengers.",
    ],
)
def test_sentences_that_define_nothing(sentence):
    assert asked(book(BODY + sentence + "\n" + filler(3))) == []


def test_no_more_definitions_and_questions_than_wanted():
    said = [f"A {name} kettle is a copper vessel that the ferries of {name} carry." for name in
            ("harbour", "mountain", "garden")]  # fmt: skip
    titles = ("Cleaning the copper kettle", "Kettles of the mountain")
    pages = book(BODY + "\n".join(said) + "\n", ("2.1 Cleaning the copper kettle\n" + filler(1), titles))
    assert [rule for rule, _, _ in asked(pages)] == ["definition", "definition", "outline", "outline"]
    assert [rule for rule, _, _ in asked(pages, definitions=3)][:3] == ["definition"] * 3
    few = own_words(pages, OwnWordsOptions(per_page=1))
    assert [q.text for q in few.questions] == [said[0], "Cleaning the copper kettle"]
    assert few.counts["outline: page has enough"] == 1
    assert own_words(pages, OwnWordsOptions(rules=("outline",))).kept() == {"outline": 2}


# ------------------------------------------------------------------------------------------ what is no question


def test_what_says_nothing_of_its_own_is_dropped_and_counted():
    titles = {
        "Introduction": "too short",
        "Kettles": "too short",
        "12.4.7": "too short",
        "Summary and further reading": "says nothing of its own",
        "List of figures and tables": "says nothing of its own",
        "Copyright 1990 The Kettle Company": "legal or address",
        "a + b = c x y z": "not words",
        "Cleaning the copper kettle and": "cut off",
        "Cleaning (the copper kettle": "cut off",
        " ".join(["kettle"] * 60): "too long",
        "Volcanoes of southern Iceland": "not on its page",
    }
    pages = book(*[(f"{title}\n{filler(n)}" if n < 10 else filler(n), (title,)) for n, title in enumerate(titles)])
    written = own_words(pages, OwnWordsOptions(rules=("outline",)))
    assert written.questions == []
    expected: dict[str, int] = {}
    for reason in titles.values():
        expected[f"outline: {reason}"] = expected.get(f"outline: {reason}", 0) + 1
    assert written.counts == expected
    assert written.dropped() == dict(
        sorted(((k.partition(": ")[2], v) for k, v in expected.items()), key=lambda p: (-p[1], p[0]))
    )


def test_a_title_of_two_pages_is_no_question_in_one_file_or_in_two():
    twice = ("Cleaning the copper kettle",)
    first = book((twice[0] + "\n" + filler(0), twice), ("Repairing a broken window\n" + filler(1),
                                                        ("Repairing a broken window",)))  # fmt: skip
    second = book((twice[0].upper() + "\n" + filler(2), (twice[0].upper(),)), file="other.pdf")
    written = own_words(first + second)
    assert [q.text for q in written.questions] == ["Repairing a broken window"]
    assert written.counts["outline: not unique"] == 2
    within = own_words(book(*[(twice[0] + "\n" + filler(n), twice) for n in range(2)]))
    assert within.questions == [] and within.counts == {"outline: not unique": 2}


def test_a_file_that_is_there_twice_is_asked_about_once_and_masked_twice():
    first = book(("Cleaning the copper kettle\n" + filler(0), ("Cleaning the copper kettle",)))
    copy = [Sheet("copy.pdf", p.page, p.text, p.outline) for p in first]
    written = own_words(first + copy)
    assert [(q.text, q.file) for q in written.questions] == [("Cleaning the copper kettle", "book.pdf")]
    assert written.counts["outline: asked of a copy of the page"] == 1
    assert set(written.masked) == {first[0].id, copy[0].id}
    assert written.masked[copy[0].id] == written.masked[first[0].id]


def test_running_headers_are_no_headings_and_are_taken_out():
    title = "Letters in the winter months"
    first = f"Chapter 4: {title}\n" + filler(0)
    rest = [f"Chapter 4: {title} {n}\n" + filler(n) for n in range(1, 6)]
    written = own_words(book((first, (title,)), *rest))
    assert [(q.rule, q.text, q.page) for q in written.questions] == [("outline", title, 1)]
    assert all(squeeze(title) not in squeeze(text) for text in written.masked.values())
    assert len(written.masked) == 6
    headers = own_words(book(*[f"4.1 {title}\n" + filler(n) for n in range(6)]))
    assert headers.questions == [] and headers.counts == {"heading: boilerplate": 6}
    two = own_words(book(*[f"4.1 {title}\n" + filler(n) for n in range(2)]))
    assert two.questions == [] and two.counts == {"heading: running header": 2}


def test_boilerplate_lines_are_found_by_how_many_pages_have_them():
    notes = [f"{filler(n)}Table {n}: Prices are subject to change\n{filler(n + 30)}" for n in range(5)]
    written = own_words(book(*notes))
    assert written.questions == [] and written.counts == {"caption: not unique": 5}
    same = own_words(book(*[n.replace(f"Table {k}", "Table 1") for k, n in enumerate(notes)]))
    assert same.questions == [] and same.counts == {"caption: boilerplate": 5}
    patient = OwnWordsOptions(max_repeats=5)
    same = own_words(book(*[n.replace(f"Table {k}", "Table 1") for k, n in enumerate(notes)]), patient)
    assert same.counts == {"caption: not unique": 5}


def test_a_contents_page_asks_nothing_and_loses_the_titles_it_lists():
    titles = ["Cleaning the copper kettle", "Repairing a broken window", "Letters in the winter months",
              "Ferries across the harbour", "Weights of common barrels"]  # fmt: skip
    listing = "".join(f"{n}.1 {title} . . . . . . . . {n + 7}\n" for n, title in enumerate(titles, 1))
    contents = "Contents\n" + listing + "9.1 Nobody asks for such . . . . . 99\n"
    chapters = [(f"{n}.1 {title}\n" + filler(n), (title,)) for n, title in enumerate(titles, 1)]
    written = own_words(book((contents, ("Table of all that is in here",)), *chapters))
    assert [q.text for q in written.questions] == titles
    assert written.counts["outline: on a contents page"] == 1
    assert written.masked["book.pdf-00001"] == "Contents\n\n9.1 Nobody asks for such . . . . . 99"


def test_a_page_that_would_be_left_empty_keeps_its_words_unless_it_has_an_image():
    text = "Cleaning the copper kettle\nwith sand\n"
    page = Sheet("a.pdf", 1, text, (Entry("Cleaning the copper kettle"),))
    assert own_words([page]).counts == {"outline: little else on the page": 1}
    scan = Sheet("a.pdf", 1, text, page.outline, image="images/a.png")
    assert own_words([scan]).kept() == {"outline": 1}
    blind = Sheet("a.pdf", 1, "", page.outline, image="images/a.png")
    written = own_words([blind])
    assert written.kept() == {"outline": 1} and written.masked == {}


def test_the_same_pages_give_the_same_questions_and_one_pass_is_refused():
    pages = []
    for name in "abc":
        titles = [f"The {name} kettle of barrel {which}" for which in ("one", "two", "six")]
        pages += book(*[(f"{n}.1 {t}\n{filler(n)}", (t,)) for n, t in enumerate(titles)], file=f"{name}.pdf")
    first, second = own_words(pages), own_words(tuple(pages))
    assert first == second and len(first.questions) == 9

    class Anew:
        def __iter__(self):
            return iter(pages)

    assert own_words(Anew()) == first
    with pytest.raises(DataError, match="twice"):
        own_words(iter(pages))
    with pytest.raises(DataError, match="a.pdf.*sort the pages"):
        own_words([pages[0], pages[3], pages[1]])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rules": ("outline", "poetry")}, "rules: choose from outline.*not poetry"),
        ({"rules": ()}, "rules: choose from outline.*not none"),
        ({"min_words": 9, "max_words": 3}, "min_words 9 and max_words 3 leave no question"),
        ({"per_page": 0}, "per_page is 0; give 1 or more"),
        ({"min_words_left": -1}, "min_words_left is -1; give 0 or more"),
    ],
)
def test_options_that_leave_nothing_are_refused(options, why):
    with pytest.raises(DataError, match=why):
        OwnWordsOptions(**options)


def test_masking_is_per_file():
    pages = book(("2.1 Cleaning the copper kettle\n" + filler(0), ("Cleaning the copper kettle",)))
    other = Sheet("other.pdf", 1, "See: Cleaning the copper kettle\nCleaning the copper kettle 4\n" + filler(1))
    questions = own_words(pages).questions
    assert set(mask([*pages, other], questions)) == {pages[0].id}
