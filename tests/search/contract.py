"""What every `Store` promises, as functions of `make(settings, space)`, which makes a new, empty store.

    def test_a_folder_keeps_the_contract(promise, tmp_path): promise(lambda settings, space: FolderStore.create(...))

Expected hits come from comparing all vectors in numpy, and conditions from plain Python.
"""

import operator
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from leaf.errors import LeafError
from leaf.search.filters import Filter, parse
from leaf.search.store import Document, Settings, Store
from leaf.space import Space

Make = Callable[[Settings, Space], Store]
DIM = 24
#: How far a score may be from the inner product of what was put in: float16 keeps 11 bits of each value.
ROUNDING = 1e-3


def space(dim: int = DIM, similarity: str = "cosine") -> Space:
    """A space made by hand, with four canaries."""
    texts = ("one", "two ½", "three\nlines", 'fo"ur')
    vectors = np.random.default_rng(7).standard_normal((4, dim)).astype(np.float32)
    return Space(
        teacher={"model": "a teacher", "weights": "0123456789abcdef", "prompts": {"a.b": "$q: "}, "nothing": None},
        dim=dim,
        normalised=similarity == "cosine",
        similarity=similarity,
        texts=texts,
        kinds=("query", "query", "document", "document"),
        vectors=vectors,
        error=0.1,
        errors={"query": 0.125},
    )


def settings(precision: str = "float32", dim: int = DIM, similarity: str = "cosine") -> Settings:
    """Settings of a small index."""
    return Settings(dim=dim, similarity=similarity, precision=precision, model="a/teacher", queries=("student",))


def documents(n: int = 200) -> list[Document]:
    """Documents with metadata of every type, each of which is missing somewhere."""
    langs = ["en", "de", "fr", "zz", "ü"]
    made = []
    for at in range(n):
        metadata: dict[str, object] = {"year": 1990 + at % 40, "draft": at % 3 == 0}
        if at % 4:
            metadata["lang"] = langs[at % 5]
        if at % 7:
            metadata["price"] = at / 8 if at % 2 else float(at)
        if at % 5 == 0:
            metadata['odd name\'; DROP.$x "%s" {y}'] = f"it's {at} %"
        if at % 6 == 0:
            metadata["lang"] = None
        made.append(Document(f"d{at:04}", f"text {at} of\tmany ½", f"title {at}" if at % 2 else "", metadata))
    return made


def vectors(n: int = 200, dim: int = DIM, seed: int = 1) -> np.ndarray:
    """Unit vectors, float32 `[n, dim]`."""
    found = np.random.default_rng(seed).standard_normal((n, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def filled(make: Make, precision: str = "float32") -> Store:
    """A store of `documents()` with `vectors()`, put in two parts."""
    store = make(settings(precision), space())
    docs, rows = documents(), vectors()
    with store.writing() as writer:
        writer.put(docs[:120], rows[:120])
        writer.put(docs[120:], rows[120:])
    return store


def without_missing(document: Document) -> Document:
    """As a store gives it back: what is missing is not there."""
    return replace(document, metadata={name: value for name, value in document.metadata.items() if value is not None})


def same(found: Document | None, expected: Document) -> bool:
    """Whether a store gave a document back; it may name what is missing, or not."""
    return found is not None and without_missing(found) == without_missing(expected)


def brute(query: np.ndarray, k: int, rows: np.ndarray, docs: list[Document], keep=lambda document: True) -> list[str]:
    """Ids of the best, the greater one first where scores are equal."""
    scores = rows.astype(np.float64) @ query.astype(np.float64)
    order = sorted((at for at, each in enumerate(docs) if keep(each)), key=lambda at: (scores[at], docs[at].id))
    return [docs[at].id for at in reversed(order[-k:])]


#: Conditions, and what they mean in Python (`get` gives None for what is missing).
CONDITIONS: list[tuple[str, Callable[[Document, Callable[[str], object]], bool]]] = [
    ("year == 2001", lambda d, get: get("year") == 2001),
    ("year == 2001.0", lambda d, get: get("year") == 2001),
    ("year != 2001", lambda d, get: get("year") != 2001),
    ("year >= 2015 and year < 2020", lambda d, get: 2015 <= get("year") < 2020),
    ("year > 2020.5", lambda d, get: get("year") > 2020.5),
    ("lang == 'de'", lambda d, get: get("lang") == "de"),
    ("lang != 'de'", lambda d, get: get("lang") not in (None, "de")),
    ("not lang == 'de'", lambda d, get: get("lang") != "de"),
    ("not lang != 'de'", lambda d, get: get("lang") in (None, "de")),
    ("lang in ['en', 'fr', 'ü']", lambda d, get: get("lang") in ("en", "fr", "ü")),
    ("lang not in ['en', 'fr']", lambda d, get: get("lang") not in (None, "en", "fr")),
    ("lang in []", lambda d, get: False),
    ("lang is None", lambda d, get: get("lang") is None),
    ("lang is not None", lambda d, get: get("lang") is not None),
    ("lang > 'fr'", lambda d, get: get("lang") is not None and get("lang") > "fr"),
    ("draft", lambda d, get: get("draft") is True),
    ("not draft", lambda d, get: get("draft") is not True),
    ("draft == False and lang == 'en'", lambda d, get: get("draft") is False and get("lang") == "en"),
    ("draft in [True]", lambda d, get: get("draft") is True),
    ("price < 3", lambda d, get: get("price") is not None and get("price") < 3),
    ("price == 1.125", lambda d, get: get("price") == 1.125),
    ("price in [2, 1.125, 400]", lambda d, get: get("price") in (2.0, 1.125)),
    ("price is None or price >= 100", lambda d, get: get("price") is None or get("price") >= 100),
    ("not (price >= 3 or lang == 'en')", lambda d, get: not ((get("price") or 0) >= 3 or get("lang") == "en")),
    ("lang.startswith('f')", lambda d, get: (get("lang") or "").startswith("f")),
    ("'z' in lang", lambda d, get: "z" in (get("lang") or "")),
    ("'z' not in lang", lambda d, get: get("lang") is not None and "z" not in get("lang")),
    ("id >= 'd0150'", lambda d, get: d.id >= "d0150"),
    ("id in ['d0003', 'd0077', 'none']", lambda d, get: d.id in ("d0003", "d0077")),
    ("title.startswith('title 1')", lambda d, get: d.title.startswith("title 1")),
    ("'19 of\\tm' in text", lambda d, get: "19 of\tm" in d.text),
    ("title is None", lambda d, get: False),
    ("text != 'x' and 'text 7' in text", lambda d, get: "text 7" in d.text),
    ("'%' in text", lambda d, get: "%" in d.text),
    ("'.' in lang", lambda d, get: False),
]


def finds_what_numpy_finds(make: Make) -> None:
    """Best first, with the scores of the inner products, for several queries at once; k larger than the store."""
    with closing(filled(make)) as store:
        docs, rows, queries = documents(), vectors(), vectors(5, seed=2)
        for exact in (False, True):
            answers = store.search(queries, 7, exact=exact)
            for query, hits in zip(queries, answers, strict=True):
                assert [hit.id for hit in hits] == brute(query, 7, rows, docs)
                true = {each.id: float(row @ query) for each, row in zip(docs, rows, strict=True)}
                np.testing.assert_allclose([hit.score for hit in hits], [true[hit.id] for hit in hits], atol=ROUNDING)
                given = {each.id: each for each in docs}
                assert all(same(Document(h.id, h.text, h.title, h.metadata), given[h.id]) for h in hits)
        assert len(store.search(queries[:1], 1000)[0]) == len(docs) == len(store)
        assert store.search(queries[:0], 3) == []


def conditions_mean_what_python_means(make: Make) -> None:
    """Filters choose the same documents as plain Python, and the best of them are found."""
    with closing(filled(make)) as store:
        docs, rows, (query,) = documents(), vectors(), vectors(1, seed=3)
        for text, means in CONDITIONS:
            for exact in (False, True):
                (hits,) = store.search(query[None], 9, where=parse(text), exact=exact)
                expected = brute(query, 9, rows, docs, lambda each, means=means: means(each, each.metadata.get))
                assert [hit.id for hit in hits] == expected, (text, exact)


def values_are_never_code(make: Make) -> None:
    """Values and column names with quotes, percents, dollars and braces are data."""
    from leaf.search.filters import Compare

    name = 'odd name\'; DROP.$x "%s" {y}'
    with closing(filled(make)) as store:
        (query,) = vectors(1, seed=3)
        nasty: list[tuple[Filter, int]] = [
            (Compare(name, "==", "it's 10 %"), 1),
            (Compare(name, "!=", "it's 10 %"), 39),
            (Compare(name, "in", ("it's 10 %", "it's 15 %", "' OR '1'='1")), 2),
            (Compare(name, "missing", None), 160),
            (Compare(name, "starts", "it's 1"), 21),  # 10, 15, and 100 to 195 in steps of 5, less 4 that k leaves
            (Compare(name, "contains", "' OR TRUE; --"), 0),
            (Compare(name, ">", "it's 9"), 2),  # 90 and 95
            (Compare("lang", "==", "'); DROP TABLE leaf; --"), 0),
            (Compare("lang", "==", "%s {0} $1 \\"), 0),
        ]
        nasty[4] = (nasty[4][0], sum(f"it's {at} %".startswith("it's 1") for at in range(0, 200, 5)))
        for condition, count in nasty:
            assert len(store.search(query[None], 500, where=condition)[0]) == count, condition
        assert len(store) == 200
        assert store.columns()[name] == "str"


def equal_scores_go_by_the_greater_id(make: Make) -> None:
    """Also where more documents tie than are asked for, and for ids outside of ASCII."""
    row = vectors(1)
    ids = ["b", "a", "ä", "B", "10", "9", "b ", "𝒳", "\uffff"]
    with closing(make(settings(), space())) as store:
        with store.writing() as writer:
            writer.put([Document(each, "same") for each in ids], np.repeat(row, len(ids), axis=0))
            writer.put([Document(f"x{at}", "other") for at in range(150)], vectors(150, seed=6))
        for exact in (False, True):
            for k in (1, 4, 9):
                (hits,) = store.search(row, k, exact=exact)
                assert [hit.id for hit in hits] == sorted(ids, reverse=True)[:k]


def gives_back_what_was_put(make: Make) -> None:
    """Documents by id, all rows with their vectors, the types of columns, settings and space."""
    with closing(filled(make)) as store:
        docs, rows = documents(), vectors()
        given = {each.id: (each, row) for each, row in zip(docs, rows, strict=True)}
        assert [found is None for found in store.get(["none", "d0004", "d0004"])] == [True, False, False]
        assert all(same(found, each) for found, each in zip(store.get([each.id for each in docs]), docs, strict=True))
        assert store.get([]) == []
        seen: list[str] = []
        for some, their in store.rows():
            assert their.shape == (len(some), DIM)
            assert their.dtype == np.float32
            for each, row in zip(some, their, strict=True):
                assert same(each, given[each.id][0])
                np.testing.assert_allclose(row, given[each.id][1], atol=ROUNDING)
            seen += [each.id for each in some]
        assert sorted(seen) == sorted(given)
        assert seen == [each.id for some, _ in store.rows() for each in some]
        odd = next(name for name in docs[0].metadata if name.startswith("odd"))
        assert store.columns() == {"year": "int", "draft": "bool", "lang": "str", "price": "float", odd: "str"}
        assert isinstance(store.get(["d0002"])[0].metadata["price"], float)
        assert store.settings == settings()
        assert store.space.id == space().id
        assert store.space.texts == space().texts
        assert store.space.errors == space().errors
        np.testing.assert_array_equal(store.space.vectors, space().vectors)


def changes_what_is_there(make: Make) -> None:
    """Documents are replaced and deleted; a writer sees its own changes, and digests tell what has changed."""
    with closing(filled(make)) as store:
        docs = documents()
        new = Document("d0003", "another text", metadata={"year": 1})
        with store.writing() as writer:
            assert dict(writer.known(["d0003", "none"])) == {"d0003": docs[3].digest}
            assert len(writer.all_ids()) == 200
            writer.put([new], vectors(1, seed=9))
            writer.delete(["d0000", "none"])
            writer.put([Document("new", "a new text")], vectors(1, seed=10))
            assert dict(writer.known(["d0003", "d0000", "new"])).keys() == {"d0003", "new"}
            assert writer.known(["d0003"])["d0003"] == new.digest
            assert writer.all_ids() == {each.id for each in docs} - {"d0000"} | {"new"}
            writer.delete(["new"])
            assert "new" not in writer.all_ids()
            assert not writer.known(["new"])
        assert len(store) == 199
        assert store.get(["d0000", "new", "d0003"]) == [None, None, new]
        (hits,) = store.search(vectors(1, seed=9), 1)
        assert (hits[0].id, hits[0].text) == ("d0003", "another text")
        assert hits[0].score == pytest.approx(1, abs=ROUNDING)
        with store.writing() as writer:
            writer.delete(list(writer.all_ids()))
        assert len(store) == 0
        assert store.search(vectors(2, seed=9), 3) == [[], []]
        assert list(store.rows()) == []


def a_change_is_whole_or_nothing(make: Make) -> None:
    """Readers see nothing of a change before its end, and nothing at all if it raises."""
    with closing(filled(make)) as store:
        (query,) = vectors(1, seed=9)
        before = store.search(query[None], 5)
        assert before[0][0].id != "new"

        def change(writer) -> None:
            writer.put([Document("new", "new", metadata={"extra": 1})], query[None])
            writer.delete(["d0001"])
            assert len(store) == 200
            assert store.search(query[None], 5) == before
            assert store.get(["new"]) == [None]
            assert "extra" not in store.columns()

        for raised in (KeyError, KeyboardInterrupt):
            with pytest.raises(raised), store.writing() as writer:  # noqa: PT012
                change(writer)
                raise raised
            assert len(store) == 200
            assert store.search(query[None], 5) == before
            assert store.get(["d0001"])[0] is not None
            assert "extra" not in store.columns()
        with store.writing() as writer:
            change(writer)
        assert store.search(query[None], 1)[0][0].id == "new"
        assert store.get(["d0001"]) == [None]
        assert store.columns()["extra"] == "int"


def one_writes_at_a_time(make: Make) -> None:
    """A second writer is told so at once, and may begin when the first has ended, however it ended."""
    with closing(make(settings(), space())) as store:
        with store.writing() as writer:
            writer.put(documents(3), vectors(3))
            with pytest.raises(LeafError, match="being changed by another process"), store.writing():
                pytest.fail("a second writer began")
            with pytest.raises(LeafError, match="being changed by another process"):
                store.configure(settings())
        with pytest.raises(KeyError), store.writing():
            raise KeyError
        with store.writing() as writer:
            assert len(writer.all_ids()) == 3


def a_column_has_one_type(make: Make) -> None:
    """Whole numbers become floats where there are floats; anything else is an error that names the column."""
    with closing(make(settings(), space())) as store:

        def put(at: int, **metadata: object) -> None:
            with store.writing() as writer:
                writer.put([Document(f"d{at}", "text", metadata=metadata)], vectors(1, seed=at))

        put(1, number=3, word="a", flag=True)
        put(2, number=2.5, word=None)
        assert store.columns() == {"number": "float", "word": "str", "flag": "bool"}
        assert [type(each.metadata["number"]) for each in store.get(["d1", "d2"])] == [float, float]
        put(3, number=7)
        assert [hit.id for hit in store.search(vectors(1), 5, where=parse("number in [3, 7]"))[0]] in (
            ["d1", "d3"],
            ["d3", "d1"],
        )
        for wrong in ({"number": "three"}, {"word": 1}, {"flag": 1}, {"number": True}):
            with pytest.raises(LeafError, match=f"metadata '{next(iter(wrong))}'") as raised:
                put(4, **wrong)
            assert "\n" not in str(raised.value)
        with pytest.raises(LeafError, match="metadata 'x'"), store.writing() as writer:
            writer.put([Document("a", "t", metadata={"x": 1}), Document("b", "t", metadata={"x": "1"})], vectors(2))
        assert len(store) == 3


def queries_and_model_may_change(make: Make) -> None:
    """`configure` keeps them and leaves alone how vectors lie."""
    with closing(filled(make)) as store:
        store.configure(replace(store.settings, queries=("one", "two"), model="other"))
        assert (store.settings.queries, store.settings.model) == (("one", "two"), "other")
        assert store.settings.precision == "float32"
        with store.writing() as writer:
            writer.delete(["d0000"])
        assert store.settings.queries == ("one", "two")
        assert len(store) == 199


def dot_products_keep_their_lengths(make: Make) -> None:
    """In a space compared by the dot product the longer vector scores more."""
    with closing(make(settings(similarity="dot"), space(similarity="dot"))) as store:
        row = vectors(1)[0]
        with store.writing() as writer:
            writer.put(
                [Document("short", "a"), Document("long", "b"), Document("back", "c")], np.stack([row, 3 * row, -row])
            )
        (hits,) = store.search(2 * row[None], 3)
        assert [hit.id for hit in hits] == ["long", "short", "back"]
        np.testing.assert_allclose([hit.score for hit in hits], [6, 2, -2], rtol=ROUNDING)


def threads_may_search(make: Make) -> None:
    """Eight threads at once get what one gets."""
    from concurrent.futures import ThreadPoolExecutor

    with closing(filled(make)) as store:
        queries = vectors(40, seed=4)
        one = [store.search(query[None], 3)[0] for query in queries]
        with ThreadPoolExecutor(8) as pool:
            assert [each[0] for each in pool.map(lambda query: store.search(query[None], 3), queries)] == one


def another_width_is_an_error(make: Make) -> None:
    """Of vectors that are put, and of queries."""
    with closing(filled(make)) as store:
        with pytest.raises(LeafError):
            store.search(vectors(1, dim=DIM - 1), 3)
        with pytest.raises(LeafError), store.writing() as writer:
            writer.put([Document("x", "y")], vectors(1, dim=DIM + 1))
        assert len(store) == 200


PROMISES: list[Callable[[Make], None]] = [
    finds_what_numpy_finds,
    conditions_mean_what_python_means,
    values_are_never_code,
    equal_scores_go_by_the_greater_id,
    gives_back_what_was_put,
    changes_what_is_there,
    a_change_is_whole_or_nothing,
    one_writes_at_a_time,
    a_column_has_one_type,
    queries_and_model_may_change,
    dot_products_keep_their_lengths,
    threads_may_search,
    another_width_is_an_error,
]
every_promise = pytest.mark.parametrize("promise", PROMISES, ids=operator.attrgetter("__name__"))
