"""The store in PostgreSQL, against a real server with pgvector."""

import itertools
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from leaf.errors import LeafError
from leaf.search.filters import parse
from leaf.search.store import Document, Settings, create_store, exists, open_store
from postgres import postgres  # noqa: F401
from search.contract import DIM, ROUNDING, brute, documents, every_promise, filled, settings, space, vectors

psycopg = pytest.importorskip("psycopg")
from leaf.search import postgres as module  # noqa: E402
from leaf.search.postgres import PostgresStore  # noqa: E402

COUNTER = itertools.count()


@pytest.fixture
def make(postgres):  # noqa: F811
    return lambda settings, space: PostgresStore.create(postgres.url, f"made_{next(COUNTER)}", space, settings)


@pytest.fixture
def small_graphs(monkeypatch):
    """Graphs from 100 documents on, so that the contract is kept by the searches through them too."""
    monkeypatch.setattr(module, "INDEXED_FROM", 100)


@every_promise
def test_it_keeps_the_contract(promise, make):
    promise(make)


@every_promise
def test_it_keeps_the_contract_with_a_graph(promise, make, small_graphs):
    promise(make)


def uses_graph(store: PostgresStore, postgres, **how) -> bool:  # noqa: F811
    """Whether the plan of a search reads the graph: what PostgreSQL itself counts of its index scans."""
    query = "SELECT idx_scan FROM pg_stat_user_indexes WHERE relname = %s AND indexrelname LIKE %s"
    names = [store.name.split("table ")[1].rstrip(")"), "%_idx"]

    def scans() -> int:
        store._connection.execute("SELECT pg_stat_force_next_flush()")
        row = postgres.connection.execute(query, names).fetchone()
        return row[0] if row else 0

    store.search(vectors(1), 3)  # opens the connection
    before = scans()
    store.search(vectors(1), 3, **how)
    return scans() > before


@pytest.mark.parametrize("precision", ["float32", "float16", "binary"])
def test_every_precision_finds_the_best_with_and_without_a_graph(make, postgres, precision, small_graphs, monkeypatch):  # noqa: F811
    docs, rows, queries = documents(), vectors(), vectors(20, seed=2)
    expected = [brute(query, 5, rows, docs) for query in queries]
    with closing(filled(make, precision)) as store:
        assert uses_graph(store, postgres)
        assert not uses_graph(store, postgres, exact=True)
        for exact in (False, True):
            answers = store.search(queries, 5, exact=exact)
            shared = np.mean(
                [len({h.id for h in hits} & set(ids)) / 5 for hits, ids in zip(answers, expected, strict=True)]
            )
            assert shared > 0.98
            for query, hits in zip(queries, answers, strict=True):
                true = [float(rows[int(hit.id[1:])] @ query) for hit in hits]
                np.testing.assert_allclose([hit.score for hit in hits], true, atol=ROUNDING)
        (read,) = [np.concatenate([vectors for _, vectors in store.rows()])]
        np.testing.assert_allclose(read, rows, atol=1e-7 if precision == "float32" else ROUNDING)
        np.testing.assert_allclose(np.linalg.norm(read, axis=1), 1, atol=1e-6)
    monkeypatch.setattr(module, "INDEXED_FROM", 10_000)
    with closing(filled(make, precision)) as store:
        assert not uses_graph(store, postgres)
        found = store.search(queries, 5)
        assert [[hit.id for hit in hits] for hits in found] == expected


def test_bits_are_searched_before_they_are_scored(make, small_graphs, monkeypatch):
    """With as many candidates as documents asked for, binary answers are those with the nearest bits."""
    from leaf.search.codes import rotated_bits

    monkeypatch.setattr(module, "BIT_CANDIDATES", 3)
    monkeypatch.setattr(module, "BIT_CANDIDATES_EACH", 0)
    query = vectors(1, seed=5)
    distances = np.unpackbits(rotated_bits(vectors()) ^ rotated_bits(query), axis=1).sum(axis=1)
    with closing(filled(make, "binary")) as store:
        (hits,) = store.search(query, 3)
    found = [distances[int(hit.id[1:])] for hit in hits]
    assert sorted(found) == sorted(distances)[:3]


def test_a_condition_that_few_meet_still_gives_all_of_them(make, monkeypatch):
    """pgvector leaves its graph after `hnsw.max_scan_tuples`; 30 such documents of 3,000 lie far from the query."""
    monkeypatch.setattr(module, "INDEXED_FROM", 1_000)
    rows = vectors(3_000)
    query = rows[0]
    far = set(np.argsort(rows @ query)[:30].tolist())
    docs = [Document(f"d{at:04}", "text", metadata={"near": at not in far}) for at in range(3_000)]
    with closing(make(settings("float16"), space())) as store:
        with store.writing() as writer:
            writer.put(docs, rows)
        # Few as they are, the planner would sort them all rather than ask the graph.
        store._read(lambda connection: connection.execute("SET hnsw.max_scan_tuples = 100; SET enable_sort = off"))
        (hits,) = store.search(query[None], 20, where=parse("not near"))
        assert [hit.id for hit in hits] == brute(query, 20, rows, docs, lambda each: not each.metadata["near"])


def test_many_more_ties_than_hits_still_go_by_the_greater_id(make):
    """More than are fetched for the client to rank, so the server's own order decides."""
    with closing(make(settings("float16"), space())) as store:
        with store.writing() as writer:
            writer.put([Document(f"{at:02}", "same") for at in range(60)], np.repeat(vectors(1), 60, axis=0))
        for exact in (False, True):
            assert [hit.id for hit in store.search(vectors(1), 3, exact=exact)[0]] == ["59", "58", "57"]


def test_names_in_schemas_and_in_quotes_are_names(postgres):  # noqa: F811
    postgres.connection.execute('CREATE SCHEMA "My schema"')
    for table in ("My schema.Pa\"pers'; --", 'select"', "ä" * 29):
        assert not exists(postgres.url, table)
        with create_store(postgres.url, space(), settings("float16"), table) as store, store.writing() as writer:
            writer.put(documents(3), vectors(3))
        assert exists(postgres.url, table)
        with open_store(postgres.url, table) as store:
            assert len(store) == 3
            assert store.search(vectors(1), 1)[0][0].id == "d0000"
    assert postgres.connection.execute('SELECT count(*) FROM "My schema"."Pa""pers\'; --"').fetchone() == (3,)
    for wrong in ("", ".", "a.", "x" * 59):
        with pytest.raises(LeafError, match="no name of a table"):
            PostgresStore(postgres.url, wrong)


def test_an_index_with_documents_is_not_made_again_and_an_empty_one_is(postgres):  # noqa: F811
    def make() -> PostgresStore:
        return PostgresStore.create(postgres.url, "again", space(), settings("float16"))

    make().close()
    with make() as store, store.writing() as writer:
        writer.put(documents(2), vectors(2))
    with pytest.raises(LeafError, match="an index of 2 documents already"):
        make()


@pytest.mark.parametrize("name", ["theirs", "theirs_leaf"])
def test_a_table_that_is_not_an_index_is_left_alone(postgres, name):  # noqa: F811
    postgres.connection.execute(f"CREATE TABLE {name} (id text)")
    try:
        assert not PostgresStore.exists(postgres.url, "theirs")
        with pytest.raises(LeafError, match="is no index"):
            PostgresStore.create(postgres.url, "theirs", space(), settings("float16"))
        with pytest.raises(LeafError, match="no index"):
            PostgresStore.open(postgres.url, "theirs")
    finally:
        postgres.connection.execute(f"DROP TABLE {name}")


def test_a_writer_that_is_killed_leaves_what_was_there(make, postgres):  # noqa: F811
    store = filled(make, "float16")
    table = store.name.split("table ")[1].rstrip(")")
    script = f"""
import os, sys
sys.path[:0] = {[os.path.dirname(os.path.dirname(__file__))]!r}
from leaf.search.store import open_store
from search.contract import documents, vectors
with open_store({postgres.url!r}, {table!r}) as store, store.writing() as writer:
    writer.delete(list(writer.all_ids()))
    writer.put(documents(5), vectors(5, seed=8))
    print(len(writer.all_ids()), flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"5\n"
    assert len(store) == 200
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert len(store) == 200
    for _ in range(100):  # the server takes a moment to notice
        try:
            with store.writing() as writer:
                writer.delete(["d0000"])
            break
        except LeafError:
            continue
    assert len(store) == 199
    store.close()


def test_a_connection_that_ends_is_opened_again_and_a_writer_that_loses_its_own_says_so(make, postgres):  # noqa: F811
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = %s"
    with closing(filled(make, "float16")) as store:
        before = store.search(vectors(1), 3)
        postgres.connection.execute(end, ["client backend"])
        assert store.search(vectors(1), 3) == before
        with pytest.raises(LeafError, match="the server says: "), store.writing() as writer:  # noqa: PT012
            writer.delete(["d0000"])
            postgres.connection.execute(end, ["client backend"])
            writer.put(documents(1), vectors(1))
        assert len(store) == 200
        list(store.rows())


def test_what_postgresql_cannot_hold_is_one_line(make, postgres):  # noqa: F811
    for precision, match in (("int8", "float16, or binary"), ("float16", "up to 16,000 dimensions")):
        with pytest.raises(LeafError, match=match):
            make(Settings(dim=20_000, similarity="cosine", precision=precision), space(20_000))
    with closing(make(settings("float16", similarity="dot"), space(similarity="dot"))) as store:
        nul, half = Document("a\x00", "text"), Document("a", "text", metadata={"x": "\ud800"})
        for bad, match in ((nul, "NUL"), (half, "surrogate")):
            with pytest.raises(LeafError, match=match), store.writing() as writer:
                writer.put([bad], vectors(1))
        with pytest.raises(LeafError, match=r"the server says: .*infinite") as raised, store.writing() as writer:
            writer.put([Document("a", "text")], vectors(1) * 1e6)
        assert "\n" not in str(raised.value)
        with store.writing() as writer:
            writer.put([Document("a", "text", metadata={"x": "b"})], vectors(1))
        for value in ("\x00", "\ud800"):
            from leaf.search.filters import Compare

            with pytest.raises(LeafError, match="the server says: "):
                store.search(vectors(1), 1, where=Compare("x", "<", value))
        assert len(store) == 1


def test_numbers_of_every_size_compare_as_in_python(make):
    values = [0, -1, 2**53 + 1, 2**53, -(2**80), 1e300, 5e-324, -0.5, 0.1, 1e-7, 1e20]
    with closing(make(settings("float16"), space())) as store:
        with store.writing() as writer:
            writer.put(
                [Document(f"{at}", "t", metadata={"n": each}) for at, each in enumerate(values)], vectors(len(values))
            )
        for bound in (0, 0.1, 1e20, 2**53, -1, 5e-324, 1e-7):
            for operator, means in (("<", float.__lt__), (">=", float.__ge__), ("==", float.__eq__)):
                (hits,) = store.search(vectors(1), 50, where=parse(f"n {operator} {bound!r}"))
                expected = {f"{at}" for at, each in enumerate(values) if means(float(each), float(bound))}
                if bound == 2**53:  # exact, where two floats would be one
                    expected -= {"2"} if operator == "==" else set()
                assert {hit.id for hit in hits} == expected, (operator, bound)
        assert [each.metadata["n"] for each in store.get([f"{at}" for at in range(len(values))])] == list(
            map(float, values)
        )


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("postgresql://me:s%20ecret@127.0.0.1:1/x", r"cannot connect to postgresql://me@127.0.0.1:1/x \(.*refused"),
        ("postgresql://me:pa@ss/word@127.0.0.1:1/x", "cannot connect to postgresql://me@127.0.0.1:1/x"),
        ("postgresql://127.0.0.1:1/x?user=me&password=s%20ecret", "password=…"),
        ("postgresql://me:s%20ecret@localhost:1/x", "refused"),
    ],
)
def test_a_server_that_does_not_answer_is_one_line_without_the_password(url, match):
    for call in (PostgresStore.open, PostgresStore.exists, lambda *a: PostgresStore.create(*a, space(), settings())):
        with pytest.raises(LeafError, match=match) as raised:
            call(url, "leaf")
        message = str(raised.value)
        assert "\n" not in message
        assert not any(secret in message for secret in ("s%20ecret", "pa@ss", "ss/word", "s ecret"))


def test_a_wrong_password_is_one_line_without_it(postgres):  # noqa: F811
    (rules,) = postgres.connection.execute("SHOW hba_file").fetchone()
    before = Path(rules).read_text()
    postgres.connection.execute("CREATE ROLE guarded LOGIN PASSWORD 'right one'")
    try:
        Path(rules).write_text("local all guarded scram-sha-256\n" + before)
        postgres.connection.execute("SELECT pg_reload_conf()")
        url = postgres.url.replace("postgres@", "guarded:wrong%20one@")
        for _ in range(100):  # until the server has read its rules
            with pytest.raises(LeafError) as raised:
                PostgresStore.open(url, "leaf")
            if "cannot connect" in str(raised.value):
                break
        message = str(raised.value)
        assert 'password authentication failed for user "guarded"' in message
        assert "\n" not in message
        assert "wrong" not in message
    finally:
        Path(rules).write_text(before)
        postgres.connection.execute("SELECT pg_reload_conf()")


def test_a_wrong_database_and_a_missing_index_are_one_line(postgres):  # noqa: F811
    with pytest.raises(LeafError, match='database "nowhere" does not exist'):
        PostgresStore.open(postgres.url.replace("/postgres?", "/nowhere?"), "leaf")
    for table in ("nothing", "no_schema.nothing"):
        with pytest.raises(LeafError, match=r"no index in postgresql://.*nothing"):
            PostgresStore.open(postgres.url, table)
        assert not PostgresStore.exists(postgres.url, table)


def test_the_extension_must_be_there_or_allowed(postgres):  # noqa: F811
    connection = postgres.connection
    connection.execute("CREATE DATABASE bare")
    connection.execute("CREATE ROLE nobody LOGIN")
    url = postgres.url.replace("/postgres?", "/bare?").replace("postgres@", "nobody@")
    with pytest.raises(LeafError, match="this user may not add it") as raised:
        PostgresStore.create(url, "leaf", space(), settings("float16"))
    assert "\n" not in str(raised.value)
    with PostgresStore.create(
        postgres.url.replace("/postgres?", "/bare?"), "leaf", space(), settings("float16")
    ) as store:
        assert len(store) == 0


def test_space_and_settings_survive_where_the_space_is_wider(postgres):  # noqa: F811
    wide = space(2 * DIM)
    PostgresStore.create(postgres.url, "wide", wide, settings("float16")).close()
    with open_store(postgres.url, "wide") as store:
        assert store.space.id == wide.id
        assert dict(store.space.teacher) == dict(wide.teacher)
        np.testing.assert_array_equal(store.space.vectors, wide.vectors)
        assert store.settings == settings("float16")


def test_an_index_of_a_newer_release_is_refused(postgres):  # noqa: F811
    PostgresStore.create(postgres.url, "newer", space(), settings("float16")).close()
    postgres.connection.execute("UPDATE newer_leaf SET version = 99")
    with pytest.raises(LeafError, match="newer release"):
        PostgresStore.open(postgres.url, "newer")
