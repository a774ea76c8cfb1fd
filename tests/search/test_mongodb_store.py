"""The store in MongoDB Vector Search, against a stand-in that checks the form of every command; no server was asked."""

import itertools
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pymongo", reason="pip install 'leaf[mongodb]'")

from bson.binary import Binary, BinaryVectorDtype

from leaf.errors import LeafError
from leaf.search import mongodb
from leaf.search.codes import rotation
from leaf.search.filters import AllOf, Compare, Not, parse
from leaf.search.mongodb import MongoStore
from leaf.search.store import Document, Settings, create_store, exists, open_store
from search.contract import (
    DIM,
    PROMISES,
    documents,
    dot_products_keep_their_lengths,
    filled,
    settings,
    space,
    vectors,
)
from search.fake_mongo import Collection, Database

COUNTER = itertools.count()
URL = "mongodb://me:secret@127.0.0.1:1/library"


@pytest.fixture
def database(monkeypatch) -> Database:
    made = Database()
    monkeypatch.setattr(mongodb, "_connect", lambda url: made)
    return made


@pytest.fixture
def make(database):
    return lambda settings, space: MongoStore.create(URL, f"made_{next(COUNTER)}", space, settings)


def documents_of(store: MongoStore) -> Collection:
    return store._documents


# MongoDB takes dot products of vectors of length 1 only; see below.
KEPT = [each for each in PROMISES if each is not dot_products_keep_their_lengths]


@pytest.mark.parametrize("promise", KEPT, ids=lambda promise: promise.__name__)
def test_it_keeps_the_contract(promise, make):
    promise(make)


def test_dot_products_of_unit_vectors_are_scored_as_they_are(make):
    with closing(make(settings(similarity="dot"), replace(space(similarity="dot"), normalised=True))) as store:
        with store.writing() as writer:
            writer.put([Document("same", "a"), Document("back", "b")], np.stack([vectors()[0], -vectors()[0]]))
        assert [(hit.id, round(hit.score, 6)) for hit in store.search(vectors(1), 3)[0]] == [("same", 1), ("back", -1)]


@pytest.mark.parametrize(("precision", "quantization"), [("float32", "none"), ("int8", "scalar"), ("binary", "binary")])
def test_the_search_index_is_defined_as_documented(make, database, precision, quantization):
    with closing(make(settings(precision), space())) as store:
        name = documents_of(store).name
        assert documents_of(store).indexes == {
            "leaf": {
                "fields": [
                    {
                        "type": "vector",
                        "path": "embedding",
                        "numDimensions": 24,
                        "similarity": "dotProduct",
                        "quantization": quantization,
                    },
                    {"type": "filter", "path": "_id"},
                ]
            }
        }
        with store.writing() as writer:
            writer.put([Document("a", "text", metadata={"year": 1, "a.b$": True, "none": None})], vectors(1))
        # In the order of their names, dots and dollars written as in a URL.
        paths = [each["path"] for each in documents_of(store).indexes["leaf"]["fields"][1:]]
        assert paths == ["_id", "metadata.a%2Eb%24", "metadata.year"]
        assert store.get(["a"])[0].metadata == {"year": 1, "a.b$": True}
        updates = [command for command in database.commands if command[:2] == ("update_search_index", name)]
        with store.writing() as writer:  # the same columns: the server builds nothing again
            writer.put([Document("b", "text", metadata={"year": 2})], vectors(1))
        assert len(updates) == 1
        assert [each for each in database.commands if each[:2] == ("update_search_index", name)] == updates


def test_a_search_is_one_pipeline_as_documented(make, database):
    with closing(filled(make)) as store:
        query = vectors(1, seed=4)
        store.search(query, 10, where=parse("year >= 2000 and lang != 'de' and not draft"))
        command, name, (search, project) = database.commands[-1]
        assert (command, name) == ("aggregate", documents_of(store).name)
        assert project == {"$project": {"digest": 0}}
        assert search == {
            "$vectorSearch": {
                "index": "leaf",
                "path": "embedding",
                "queryVector": Binary.from_vector(query[0].tolist(), BinaryVectorDtype.FLOAT32),
                "limit": 26,
                "numCandidates": 520,
                "filter": {
                    "$and": [
                        {"metadata.year": {"$gte": 2000}},
                        {"$and": [{"metadata.lang": {"$exists": True}}, {"metadata.lang": {"$ne": "de"}}]},
                        {"$nor": [{"metadata.draft": {"$eq": True}}]},
                    ]
                },
            }
        }
        store.search(query, 10, exact=True)
        stage = database.commands[-1][2][0]["$vectorSearch"]
        assert (stage["exact"], "numCandidates" in stage, "filter" in stage) == (True, False, False)
        store.search(query, 9_000)  # more candidates than may be asked for: all are compared
        assert database.commands[-1][2][0]["$vectorSearch"]["exact"] is True


def test_vectors_have_the_bytes_of_the_specification(make):
    """1, −2.5 and 0.1 as little-endian IEEE 754: 3f800000, c0200000, 3dcccccd, after 27 00 for float32."""
    values = np.array([1, -2.5, 0.1], dtype=np.float32)
    by_hand = bytes.fromhex("27000000803f000020c0cdcccc3d")
    assert bytes(mongodb._sent(values)) == by_hand
    assert mongodb._sent(values).subtype == 9
    with closing(filled(make)) as store:
        row = documents_of(store).rows["d0007"]["embedding"]
        assert (row.subtype, bytes(row)) == (9, b"\x27\x00" + vectors()[7].astype("<f4").tobytes())


def test_a_binary_index_holds_turned_vectors_and_gives_them_back(make):
    with closing(filled(make, "binary")) as store:
        held = np.frombuffer(bytes(documents_of(store).rows["d0007"]["embedding"])[2:], "<f4")
        np.testing.assert_allclose(held, vectors()[7] @ rotation(DIM), atol=1e-6)
        assert np.abs(held - vectors()[7]).max() > 0.1
        np.testing.assert_allclose(np.concatenate([rows for _, rows in store.rows()]), vectors(), atol=1e-6)
        (hits,) = store.search(vectors()[7:8], 1)
        assert hits[0].id == "d0007"
        assert hits[0].score == pytest.approx(1, abs=1e-6)


def test_conditions_that_vector_search_cannot_check_are_looked_up(make, database, monkeypatch):
    """The stand-in refuses `$regex`, `title` and `text` in a filter, as the server does."""
    with closing(filled(make)) as store:
        store.search(vectors(1), 3, where=parse("'7 of' in text and year >= 2000"))
        stage = database.commands[-1][2][0]["$vectorSearch"]
        expected = [each.id for each in documents() if "7 of" in each.text and each.metadata["year"] >= 2000]
        assert sorted(stage["filter"]["_id"]["$in"]) == expected
        assert store.search(vectors(1), 3, where=parse("'nowhere' in text")) == [[]]
        monkeypatch.setattr(mongodb, "MAX_IDS", 100)
        with pytest.raises(LeafError, match="more than 100 documents meet this condition"):
            store.search(vectors(1), 3, where=parse("'text' in text"))


def test_texts_that_begin_alike_lie_between_two_bounds():
    def bounds(prefix: str) -> tuple[str, str | None]:
        found = mongodb._starting("p", prefix)
        if "$and" not in found:
            return found["p"]["$gte"], None
        first, second = found["$and"]
        return first["p"]["$gte"], second["p"]["$lt"]

    assert bounds("ab") == ("ab", "ac")
    assert bounds("a\ud7ff") == ("a\ud7ff", "a\ue000")
    assert bounds("a\U0010ffff") == ("a\U0010ffff", "b")
    assert bounds("\U0010ffff") == ("\U0010ffff", None)
    assert bounds("") == ("", None)


def test_a_change_that_was_complete_is_moved_over_by_the_next_writer(make, database):
    with closing(filled(make)) as store:
        incoming = database[f"{documents_of(store).name}_incoming"]
        database.fail_at = "delete_many"  # in the middle of moving
        with pytest.raises(LeafError, match="the connection broke"), store.writing() as writer:  # noqa: PT012
            writer.put([Document("new", "new", metadata={"extra": 1})], vectors(1, seed=9))
            writer.delete(["d0001"])
        assert len(store) == 201  # half of it is there
        assert len(incoming.rows) == 2
        with store.writing() as writer:
            assert writer.known(["new", "d0001"]).keys() == {"new"}
        assert len(store) == 200
        assert store.columns()["extra"] == "int"
        assert "metadata.extra" in [each["path"] for each in documents_of(store).indexes["leaf"]["fields"]]
        assert not incoming.rows
        assert not database[f"{documents_of(store).name}_leaf"].rows["index"].get("pending")


def test_a_writer_that_was_killed_is_forgotten_and_leaves_nothing(make, database, monkeypatch):
    """It has laid down a change, and says no word any more."""
    with closing(filled(make)) as store:
        killed = store.writing()
        writer = killed.__enter__()
        writer.put([Document("new", "new")], vectors(1, seed=9))
        with pytest.raises(LeafError, match=r"another process.*forgotten after 10 minutes"), store.writing():
            pass
        later = time.time() + 601
        monkeypatch.setattr(mongodb.time, "time", lambda: later)
        with store.writing() as other:
            assert "new" not in other.all_ids()
            with pytest.raises(LeafError, match="another process has begun"):
                writer.put([Document("late", "late")], vectors(1))
        assert len(store) == 200
        with pytest.raises(LeafError, match="another process has begun"):
            killed.__exit__(None, None, None)
        assert len(store) == 200


def test_a_search_index_that_is_missing_or_not_ready_is_no_empty_answer(make):
    with closing(filled(make)) as store:
        documents_of(store).queryable = False
        with pytest.raises(LeafError, match=r"still builds the search index .*\(BUILDING\)"):
            store.search(vectors(1), 3)
        documents_of(store).indexes.clear()
        with pytest.raises(LeafError, match="has no search index 'leaf'"):
            store.search(vectors(1), 3)


def test_what_mongodb_cannot_search_is_one_line(make):
    for wrong, its_space, match in (
        (settings("float16"), space(), "has no float16; choose precision int8, binary or float32"),
        (settings("binary", dim=20), space(20), "binary takes widths that 8 divides, not 20"),
        (settings("int8", dim=9000), space(9000), "up to 8,192 dimensions"),
        (settings(similarity="dot"), space(similarity="dot"), "dot products of vectors of length 1 only"),
        (settings(similarity="dot"), replace(space(2 * DIM, "dot"), normalised=True), "of length 1 only"),
    ):
        with pytest.raises(LeafError, match=match) as raised:
            make(wrong, its_space)
        assert "\n" not in str(raised.value)
    with closing(make(settings(), space())) as store:
        with pytest.raises(LeafError, match="beyond 64 bits"), store.writing() as writer:
            writer.put([Document("a", "text", metadata={"n": 2**63})], vectors(1))
        with pytest.raises(LeafError, match="the server says: "), store.writing() as writer:
            writer.put([Document("a", "half \ud800")], vectors(1))
        assert len(store) == 0


def test_it_is_made_once_opened_by_its_url_and_leaves_others_alone(database):
    assert not exists(URL)
    with pytest.raises(LeafError, match=r"no index in mongodb://me@127.0.0.1:1/library \(collection leaf\)"):
        open_store(URL)
    create_store(URL, space(2 * DIM), settings("int8")).close()
    create_store(URL, space(2 * DIM), settings("int8")).close()  # empty: it makes room
    assert exists(URL)
    with open_store(URL) as store:
        assert store.settings == settings("int8")
        assert store.space.id == space(2 * DIM).id
        assert dict(store.space.teacher) == dict(space().teacher)
        np.testing.assert_array_equal(store.space.vectors, space(2 * DIM).vectors)
        with store.writing() as writer:
            writer.put(documents(2), vectors(2))
    with pytest.raises(LeafError, match="an index of 2 documents already"):
        create_store(URL, space(), settings("int8"))
    database.create_collection("theirs")
    with pytest.raises(LeafError, match="'theirs' is there and is no index"):
        create_store(URL, space(), settings("int8"), "theirs")
    database["leaf_leaf"].rows["index"]["version"] = 99
    with pytest.raises(LeafError, match="newer release"):
        open_store(URL)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("mongodb://me:s%20ecret@127.0.0.1:1/library", "cannot connect to mongodb://me@127.0.0.1:1/library .*refused"),
        ("mongodb://me:s%20ecret@127.0.0.1:1/", "write mongodb://HOST/DATABASE"),
        ("mongodb://me:pa@s%20ecret@127.0.0.1:1/library", "mongodb://me@127.0.0.1:1/library"),
    ],
)
def test_a_server_that_does_not_answer_is_one_line_without_the_password(monkeypatch, url, match):
    monkeypatch.setattr(mongodb, "CONNECT_TIMEOUT", 0.2)
    with pytest.raises(LeafError, match=match) as raised:
        MongoStore.open(url, "leaf")
    message = str(raised.value)
    assert "\n" not in message
    assert "ecret" not in message


def test_only_what_the_filter_of_vector_search_knows_is_sent_to_it():
    year, part = Compare("year", ">", 1), Compare("lang", "contains", "d")
    assert mongodb._prefilters(AllOf((year, Not(Compare("id", "starts", "a")))))
    assert not mongodb._prefilters(AllOf((year, Not(part))))
    assert not mongodb._prefilters(Compare("title", "==", "a"))
    assert Settings(dim=8, similarity="cosine").precision in mongodb.QUANTIZATION  # the usual one
