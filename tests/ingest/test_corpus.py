"""Pages and questions as a collection: what stands where, which files are held out, what is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from pyarrow.parquet import read_table

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.load import load
from smart_train.data.readers.beir import read_beir
from smart_train.ingest.corpus import build, documents
from smart_train.ingest.pages import Outline, Page, page_hash, page_id, read_pages, write_pages
from smart_train.ingest.questions.own_words import own_words
from smart_train.ingest.questions.question_set import Question, QuestionSet

BODY = "Copper kettles stand in the kitchen beside the window, and in winter the harbour freezes for a month or two. "
NAMES = ("kettle", "harbour", "violin", "lantern", "mountain", "river", "garden", "copper", "engine", "paper", "market",
         "window", "forest", "music")  # fmt: skip


def ingested(out: Path, sizes: dict[str, int], images: bool = False, names: dict[str, str] | None = None) -> Path:
    """A folder as ``ingest`` leaves it: files with so many pages, a title on each; content depends on the key alone."""
    (out / "pages").mkdir(parents=True, exist_ok=True)
    (out / "images").mkdir(exist_ok=True)
    for key, size in sizes.items():
        file_id = f"{abs(hash_of(key)):020x}"[:20]
        pages = []
        for number in range(1, size + 1):
            title = f"The {NAMES[number % 14]} story {key} tells of {NAMES[number // 14]}"
            text = f"1.{number} {title}\n{BODY} Tale {number} of {key}."
            image = None
            if images:
                image = f"images/{page_id(file_id, number)}.png"
                Image.new("RGB", (20, 10), (number, 0, 0)).save(out / image)
            name = (names or {}).get(key, f"{key}.pdf")
            pages.append(Page(page_id(file_id, number), name, number, size, f"p{number}", text, title,
                              (Outline(title, 0),), image, page_hash(text, None), "pdf"))  # fmt: skip
        write_pages(out / "pages" / f"{file_id}.parquet", pages, {"file": pages[0].file})
    return out


def hash_of(key: str) -> int:
    from smart_train.data.collection import hash_id

    return hash_id(key)


def written(out: Path) -> QuestionSet:
    return own_words(read_pages(out))


def sides(out: Path) -> dict[str, set[str]]:
    """split -> files, as the qrels and the corpus on the disk have it."""
    file = {row["id"]: row["file"] for row in read_table(out / "corpus" / "corpus.parquet").to_pylist()}
    return {
        path.stem: {file[row["corpus-id"]] for row in read_table(path).to_pylist()}
        for path in sorted((out / "qrels").glob("*.parquet"))
    }


SIZES = {f"book{n}": 4 + n % 3 for n in range(12)}


def test_what_is_written_is_read_back_by_every_reader(tmp_path):
    out = ingested(tmp_path / "mine", SIZES)
    questions = written(out)
    built = build(out, questions)
    total = sum(SIZES.values())
    assert built.documents == total == sum(built.queries.values()) and sum(built.files.values()) == 12
    assert set(built.queries) == {"train", "dev", "test"} and min(built.queries.values()) > 0 and built.without == {}
    texts = {q.text: q for q in questions.questions}
    for split, count in built.queries.items():
        collection = read_beir(out, split)
        assert len(collection.queries) == count and collection.problems() == [] and len(collection.corpus) == total
        for query, text in collection.queries.items():
            assert collection.relevant(query) == {texts[text].document}
            document = collection.corpus[texts[text].document]
            assert text not in (document.text or "") and BODY.strip() in (document.text or "")
            assert (document.file, document.page) == (texts[text].file, texts[text].page)
    loaded = load(DataBlock(path=str(out), split="train", dev=0.1))
    for side, split in zip(loaded, ("train", "dev", "test"), strict=True):
        assert side.queries == read_beir(out, split).queries and side.qrels == read_beir(out, split).qrels


def test_every_query_keeps_where_it_comes_from_and_every_page_its_own_text(tmp_path):
    out = ingested(tmp_path / "mine", SIZES)
    questions = written(out)
    build(out, questions)
    pages = {page.id: page for page in read_pages(out)}
    rows = read_table(out / "queries" / "queries.parquet").to_pylist()
    found = {row["text"]: row for row in rows}
    for q in questions.questions:
        row = found[q.text]
        assert (row["rule"], row["source"], row["document"], row["file"], row["page"]) == (
            "outline", q.source, q.document, q.file, q.page
        )  # fmt: skip
        assert q.source in pages[q.document].text
    judged = {
        row["query-id"]: path.stem for path in (out / "qrels").glob("*.parquet") for row in read_table(path).to_pylist()
    }
    assert {row["id"]: row["split"] for row in rows} == judged
    for row in read_table(out / "corpus" / "corpus.parquet").to_pylist():
        page = pages[row["id"]]
        assert (row["source_text"], row["label"], row["hash"], row["title"]) == (page.text, page.label, page.hash, None)


def test_files_are_held_out_whole_whatever_they_are_called(tmp_path):
    out = ingested(tmp_path / "a", SIZES)
    build(out, written(out))
    first = sides(out)
    assert sum(map(len, first.values())) == len(set().union(*first.values())) == 12
    renamed = {key: f"{11 - n:02d} {key}.pdf" for n, key in enumerate(SIZES)}
    other = ingested(tmp_path / "b", SIZES, names=renamed)
    build(other, written(other))
    again = {split: {renamed[file.removesuffix(".pdf")] for file in files} for split, files in first.items()}
    assert sides(other) == again
    seeds = []
    for seed in range(4):
        build(out, written(out), seed=seed)
        seeds.append(sides(out))
    assert seeds[0] == first and any(found != first for found in seeds)


def test_shares_are_of_the_questions_and_none_is_none(tmp_path):
    out = ingested(tmp_path / "mine", SIZES)
    questions = written(out)
    total = len(questions.questions)
    for dev, test in ((0.1, 0.3), (0.25, 0.1)):
        built = build(out, questions, dev, test)
        for side, share in (("dev", dev), ("test", test)):
            assert share * total <= built.queries[side] <= 1.6 * share * total
    built = build(out, questions, 0, 0.2)
    assert built.queries["dev"] == 0 and set(sides(out)) == {"train", "test"}  # the dev of the build before is gone


def test_a_second_build_replaces_the_first(tmp_path):
    out = ingested(tmp_path / "mine", SIZES)
    questions = written(out)
    build(out, questions)
    few = QuestionSet(questions.questions[::2], dict(questions.masked))
    build(out, few)
    assert len(read_table(out / "queries" / "queries.parquet")) == len(few.questions)
    assert sum(len(read_table(p)) for p in (out / "qrels").glob("*.parquet")) == len(few.questions)
    before = (out / "corpus" / "corpus.parquet").read_bytes()
    build(out, few)
    assert (out / "corpus" / "corpus.parquet").read_bytes() == before


def test_few_or_uneven_files_are_split_as_far_as_they_go_and_it_is_said(tmp_path, caplog):
    one = ingested(tmp_path / "one", {"only": 6})
    built = build(one, written(one))
    assert built.queries == {"train": 6, "dev": 0, "test": 0} and set(sides(one)) == {"train"}
    assert "cannot be held out" in caplog.text and "test has 0" in caplog.text
    two = ingested(tmp_path / "two", {"large": 9, "small": 2})
    assert build(two, written(two)).queries == {"train": 9, "dev": 0, "test": 2}
    three = ingested(tmp_path / "three", {"large": 30, "mid": 14, "less": 9})
    assert build(three, written(three), 0.15, 0.2).queries == {"train": 30, "dev": 14, "test": 9}
    assert build(three, written(three), 0.15, 0.3).queries == {"train": 30, "dev": 9, "test": 14}


def test_pages_with_the_same_content_answer_the_same_question_and_stay_together(tmp_path):
    out = ingested(tmp_path / "mine", SIZES)
    pages = list(read_pages(out))
    first = pages[0]
    copies = [Page("c" * 20 + f"-{p.page:05d}", "copy.pdf", *[getattr(p, n) for n in
              ("page", "pages", "label", "text", "title", "outline", "image", "hash", "kind")])
              for p in pages if p.file == first.file]  # fmt: skip
    write_pages(out / "pages" / f"{'c' * 20}.parquet", copies, {"file": "copy.pdf"})
    questions = written(out)
    built = build(out, questions)
    assert len(questions.questions) == sum(SIZES.values()) and built.documents == len(pages) + len(copies)
    homes = [split for split, files in sides(out).items() if files & {"copy.pdf", first.file}]
    assert len(homes) == 1
    collection = read_beir(out, homes[0])
    asked = [q for q in collection.queries if first.id in collection.relevant(q)]
    assert collection.relevant(asked[0]) == {first.id, copies[0].id}
    assert collection.corpus[first.id].text == collection.corpus[copies[0].id].text


def test_images_are_referred_to_and_text_may_be_missing(tmp_path):
    out = ingested(tmp_path / "mine", SIZES, images=True)
    pages = list(read_pages(out))
    scan = Page("f" * 20 + "-00001", "scan.pdf", 1, 2, None, "", None, (Outline("A scan of an old letter", 0),),
                pages[0].image, "aa", "pdf")  # fmt: skip
    blank = Page("f" * 20 + "-00002", "scan.pdf", 2, 2, None, " \n", None, (), None, "bb", "pdf")
    write_pages(out / "pages" / f"{'f' * 20}.parquet", [scan, blank], {"file": "scan.pdf"})
    built = build(out, written(out))
    assert built.without == {"pages with neither text nor image": 1}
    split = next(s for s, files in sides(out).items() if "scan.pdf" in files)
    corpus = read_beir(out, split).corpus
    assert blank.id not in corpus and corpus[scan.id].text is None and corpus[scan.id].content().size == (20, 10)
    assert corpus[pages[3].id].content()["image"].getpixel((0, 0)) == (pages[3].page, 0, 0)
    assert len(list((out / "images").iterdir())) == sum(SIZES.values())  # each once, none copied
    shown = {d.id: d for d in documents(out, {pages[0].id: "masked"})}
    assert shown[pages[0].id].text == "masked" and shown[pages[1].id].text == pages[1].text.strip()
    assert blank.id not in shown


def test_questions_without_a_page_are_an_error_and_about_an_empty_one_are_counted(tmp_path):
    out = ingested(tmp_path / "mine", SIZES)
    questions = written(out)
    with pytest.raises(DataError, match="gave no question"):
        build(out, QuestionSet())
    lost = Question("what about the moon", "nowhere-00001", "vlm: fact", "", "x.pdf", 1)
    with pytest.raises(DataError, match="what about the moon.*nowhere-00001"):
        build(out, QuestionSet([lost]))
    gone = questions.questions[0].document
    built = build(out, QuestionSet(questions.questions, {**questions.masked, gone: "  "}))
    assert built.without == {
        "pages with neither text nor image": 1, "questions about a page with nothing else on it": 1
    }  # fmt: skip
    with pytest.raises(DataError, match="no pages"):
        build(tmp_path, questions)
