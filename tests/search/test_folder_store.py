"""The store in a folder: what every store promises, its files, and what happens to them when somebody dies."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from leaf.errors import LeafError
from leaf.search import folder as module
from leaf.search.filters import parse
from leaf.search.folder import FolderStore, merging
from leaf.search.store import Document
from search.contract import DIM, brute, documents, every_promise, filled, settings, space, vectors


@pytest.fixture
def make(tmp_path):
    return lambda settings, space: FolderStore.create(tmp_path / "index", space, settings)


@pytest.fixture
def small_graphs(monkeypatch):
    """Graphs and bits from 50 documents on, so that the contract is kept by the searches through them too."""
    monkeypatch.setattr(module, "EXACT_ROWS", 50)


@every_promise
def test_it_keeps_the_contract(promise, make):
    promise(make)


@every_promise
@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
def test_it_keeps_the_contract_in_every_precision_with_graphs(promise, make, precision, small_graphs, monkeypatch):
    by_name = ("gives_back_what_was_put", "queries_and_model_may_change")  # these ask for float32
    to_the_last_digit = ("conditions_mean_what_python_means",)  # where float16 swaps two of nearly one score
    if precision != "float32" and promise.__name__ in (*by_name, *to_the_last_digit):
        pytest.skip("needs float32")
    # The graph, asked for enough, sees all 200; by 24 bits alone nothing could be told apart.
    monkeypatch.setattr("leaf.search.segments.GRAPH_CANDIDATES", 60)
    monkeypatch.setattr("leaf.search.segments.BIT_CANDIDATES", 200)
    promise(lambda given, space: make(replace(given, precision=precision), space))


def clustered(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around centres, as texts lie, float32 `[n, dim]`."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((50, dim))
    found = centres[generator.integers(0, 50, n)] + 0.7 * generator.standard_normal((n, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
def test_approximate_search_finds_nearly_all_of_the_exact_ten(make, precision, monkeypatch):
    monkeypatch.setattr(module, "EXACT_ROWS", 1000)
    rows = clustered(4_100, 64)
    store = make(settings(precision, dim=64), space(64))
    with store.writing() as writer:
        for at in range(0, 4000, 500):
            writer.put([Document(f"{each:05}", "text") for each in range(at, at + 500)], rows[at : at + 500])
    assert store._snapshot.segments[0].has_codes
    found = store.search(rows[4000:], 10)
    best = np.argsort(-(rows[4000:] @ rows[:4000].T), axis=1)[:, :10]
    shared = [len({int(hit.id) for hit in hits} & set(its)) for hits, its in zip(found, best.tolist(), strict=True)]
    assert np.mean(shared) / 10 >= 0.97
    # A hit has the score of the whole vectors, whatever it was found by.
    for query, hits in zip(rows[4000:4003], found, strict=False):
        for hit in hits:
            assert hit.score == pytest.approx(float(rows[int(hit.id)] @ query), abs=1e-3)


def test_a_filter_that_few_meet_is_searched_exactly(make, small_graphs):
    store = make(settings("binary"), space())
    docs, rows = documents(), vectors()
    with store.writing() as writer:
        writer.put(docs, rows)
    condition = "year == 2001"
    (hits,) = store.search(vectors(1, seed=3), 5, where=parse(condition))
    assert [hit.id for hit in hits] == brute(
        vectors(1, seed=3)[0], 5, rows, docs, lambda each: each.metadata["year"] == 2001
    )


def test_many_small_changes_leave_few_segments(make, small_graphs):
    store = make(settings("int8"), space())
    docs, rows = documents(), vectors()
    for at in range(0, 200, 4):
        with store.writing() as writer:
            writer.put(docs[at : at + 4], rows[at : at + 4])
    assert len(store._snapshot.segments) <= module.SMALL_SEGMENTS + 3
    assert len(store) == 200
    (query,) = vectors(1, seed=3)
    assert [hit.id for hit in store.search(query[None], 5, exact=True)[0]] == brute(query, 5, rows, docs)


class Sized:
    def __init__(self, rows: int, live: int, has_codes: bool) -> None:
        self.rows, self.live, self.has_codes = rows, live, has_codes


def test_what_is_written_again_follows_from_sizes():
    exact = module.EXACT_ROWS
    big = Sized(10 * exact, 10 * exact, True)
    small = Sized(exact // 10, exact // 10, False)
    assert merging([big, small], 5) == []
    # Together more than are compared one by one: they become a graph of their own, beside one ten times as large.
    assert merging([big, small, small], exact) == [1, 2]
    assert merging([big], 6 * exact) == [0]
    assert merging([Sized(100, 79, False)], 1) == [0]  # a fifth is gone
    assert merging([small] * module.SMALL_SEGMENTS, 1) == list(range(module.SMALL_SEGMENTS))


def test_the_documents_are_a_parquet_file_that_others_read(make, tmp_path):
    filled(make)
    found = pq.read_table(next((tmp_path / "index").glob("segments/*/documents.parquet"))).to_pylist()
    assert [row["id"] for row in found] == [each.id for each in documents()]
    assert found[3]["year"] == documents()[3].metadata["year"]


def test_the_mapped_copy_is_made_again_where_it_is_missing(make, tmp_path):
    store = filled(make)
    before = store.search(vectors(2, seed=4), 5)
    next((tmp_path / "index").glob("segments/*/rows.arrow")).unlink()
    assert FolderStore.open(tmp_path / "index").search(vectors(2, seed=4), 5) == before


def test_a_reader_sees_the_changes_of_another_process(make, tmp_path):
    reader = filled(make)
    writer = FolderStore.open(tmp_path / "index")
    (query,) = vectors(1, seed=9)
    with writer.writing() as change:
        change.put([Document("new", "new")], query[None])
    assert reader.search(query[None], 1)[0][0].id == "new"
    assert len(reader) == 201


def test_old_files_go_with_the_next_change(make, tmp_path):
    store = filled(make)
    left = tmp_path / "index" / "segments" / "000009-dead"
    left.mkdir()
    (left / "vectors.npy").write_bytes(b"half")
    with store.writing() as writer:
        writer.delete(["d0000"])
    with store.writing() as writer:
        writer.delete(["d0001"])
    assert not left.exists()
    assert len(list((tmp_path / "index").glob("segments/*/deleted-*.npy"))) == 1


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("segments/*/vectors.npy", lambda path: os.truncate(path, 100)),
        ("segments/*/vectors.npy", lambda path: path.unlink()),
        ("segments/*/rows.arrow", lambda path: path.write_bytes(b"x" * path.stat().st_size)),
        ("segments/*/documents.parquet", lambda path: path.write_bytes(b"")),
        ("index.json", lambda path: path.write_text("{")),
        ("index.json", lambda path: path.write_text("[]")),
        ("index.json", lambda path: path.write_text(path.read_text().replace('"dim": 24', '"dim": "x", "y": 1'))),
        ("space.json", lambda path: path.write_text("{")),
        ("canaries.safetensors", lambda path: os.truncate(path, 10)),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(make, tmp_path, file, damage):
    filled(make)
    damage(next((tmp_path / "index").glob(file)))
    with pytest.raises(LeafError, match=Path(file).name) as raised:
        FolderStore.open(tmp_path / "index")
    assert "\n" not in str(raised.value)


def test_a_flipped_byte_is_found_by_reading_everything(make, tmp_path):
    store = make(settings(dim=256), space(256))
    with store.writing() as writer:
        writer.put([Document(str(each), "text") for each in range(4000)], clustered(4000, 256))
    path = next((tmp_path / "index").glob("segments/*/vectors.npy"))
    assert path.stat().st_size > 3 << 20  # so that its middle is in neither end that opening looks at
    with open(path, "r+b") as handle:
        handle.seek(path.stat().st_size // 2)
        handle.write(b"\xff\x7f")
    store = FolderStore.open(tmp_path / "index")
    with pytest.raises(LeafError, match=r"vectors\.npy is damaged"):
        store.check()


def test_a_newer_format_and_other_folders_are_refused(make, tmp_path):
    filled(make)
    manifest = tmp_path / "index" / "index.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 2}))
    with pytest.raises(LeafError, match="newer release"):
        FolderStore.open(tmp_path / "index")
    with pytest.raises(LeafError, match="no folder"):
        FolderStore.open(tmp_path / "nothing")
    with pytest.raises(LeafError, match="no index"):
        FolderStore.open(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"x")
    with pytest.raises(LeafError, match="no index; name a new folder"):
        FolderStore.create(tmp_path / "photos", space(), settings())
    with pytest.raises(LeafError, match="is a file"):
        FolderStore.create(tmp_path / "photos" / "one.jpg", space(), settings())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_index_that_cannot_be_written_is_searched_all_the_same(make, tmp_path):
    filled(make)
    (tmp_path / "index").chmod(0o500)
    store = FolderStore.open(tmp_path / "index")
    assert store.search(vectors(1), 3)
    with pytest.raises(LeafError, match="cannot be written"), store.writing():
        pass


WRITER = """
import sys
import numpy as np
from leaf.search import folder
from leaf.search.folder import FolderStore
from leaf.search.store import Document
folder.EXACT_ROWS = 1000
store = FolderStore.open(sys.argv[1])
rows = np.random.default_rng(1).standard_normal((4000, 64)).astype(np.float32)
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
number = 0
while True:
    number += 1
    print("begin", flush=True)
    with store.writing() as writer:
        for at in range(0, 4000, 1000):
            some = range(at, at + 1000)
            writer.put([Document(str(each), f"version {number}") for each in some], rows[at : at + 1000])
    print(number, flush=True)
"""


def test_killed_at_any_moment_it_leaves_the_last_complete_state(make, tmp_path):
    """Five writers that replace all documents again and again, each killed somewhere in its second or third change."""
    store = make(settings("int8", dim=64), space(64))
    generator = np.random.default_rng(0)
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "index")], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "1":
                break
        began = time.monotonic()
        process.stdout.readline()
        time.sleep(generator.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        finished = [int(each) for each in process.stdout.read().split() if each != "begin"]
        process.wait()
        assert time.monotonic() - began < 30
        versions = {each.text for some, _ in store.rows() for each in some}
        assert len(store) == 4000
        # Whole states only: that of the last change that was reported, or of the next, killed before it could say so.
        assert len(versions) == 1
        last = max(finished, default=1)
        assert versions <= {f"version {last}", f"version {last + 1}"}
        store.check()
        hits = store.search(np.eye(1, 64, dtype=np.float32), 3)[0]
        assert len(hits) == 3
    with store.writing() as writer:  # what the dead have left goes
        writer.delete(["0"])
    assert len(list((tmp_path / "index" / "segments").iterdir())) == len(store._snapshot.segments)


def test_a_copy_of_the_folder_is_the_index(make, tmp_path):
    before = filled(make).search(vectors(1), 5)
    shutil.copytree(tmp_path / "index", tmp_path / "copy")
    assert FolderStore.open(tmp_path / "copy").search(vectors(1), 5) == before
    assert FolderStore.open(tmp_path / "copy").settings.dim == DIM


WRITING = """
import sys
sys.path[:0] = [{tests!r}, {search!r}]
from contract import vectors
from leaf.search import folder as module
from leaf.search.store import Document
module.EXACT_ROWS = 50
store = module.FolderStore.open({folder!r})
for change in range(25):
    with store.writing() as writer:
        writer.put([Document(f"e{{at}}", f"text {{change}}") for at in range(100)], vectors(100, seed=change))
"""


def test_readers_never_meet_a_file_that_a_writer_removed(make, small_graphs, tmp_path):
    """A snapshot reads on from files that are gone, in every kind of reading, from threads, while another writes."""
    store = filled(make, "int8")
    tests = Path(__file__).parents[1]
    code = WRITING.format(tests=str(tests), search=str(tests / "search"), folder=str(store.folder))
    with subprocess.Popen([sys.executable, "-c", code]) as writer, ThreadPoolExecutor(4) as pool:
        queries = vectors(3, seed=9)

        def read() -> int:
            rounds = 0
            while writer.poll() is None:
                assert [len(hits) for hits in store.search(queries, 5)] == [5, 5, 5]
                assert store.search(queries[:1], 5, where=parse("year > 2000"))[0]
                old = store._snapshot
                assert sum(len(some) for some, _ in store.rows()) in (200, 300)
                assert old.segments[0].search(queries, 2, None)
                rounds += 1
            return rounds

        assert min(each.result() for each in [pool.submit(read) for _ in range(4)]) > 0
        assert writer.wait() == 0
    assert len(store) == 300


def test_a_snapshot_taken_by_a_reader_never_stays_behind_that_of_a_writer(make):
    """Reader and writer of one process may load at the same time: what is old is known as old."""
    store = filled(make)
    old = store._load()
    with store.writing() as writer:
        writer.delete(["d0001"])
    store._snapshot = old  # the reader comes second
    assert len(store) == 199


def test_queries_of_any_length_find_the_same_in_a_dot_space(make, monkeypatch):
    """int8 codes of a query that is longer or shorter than documents neither saturate nor vanish."""
    monkeypatch.setattr(module, "EXACT_ROWS", 500)
    store = make(settings("int8", similarity="dot"), space(similarity="dot"))
    generator = np.random.default_rng(1)
    rows = 6 * clustered(3000, DIM) * np.exp(generator.uniform(-0.3, 0.3, (3000, 1))).astype(np.float32)
    with store.writing() as writer:
        writer.put([Document(f"d{at:04}", "text") for at in range(3000)], rows)
    queries = clustered(20, DIM, seed=4)
    best = [[f"d{at:04}" for at in np.argsort(-own)[:10]] for own in queries @ rows.T]
    for scale in (0.001, 1.0, 1000.0):
        found = [[hit.id for hit in hits] for hits in store.search(np.float32(scale) * queries, 10)]
        shared = [len({*one} & {*other}) for one, other in zip(best, found, strict=True)]
        assert np.mean(shared) > 9.5, scale


def test_numbers_beyond_what_a_float_tells_apart_may_become_floats(make):
    """2⁶⁰ + 1 is no float64; Python rounds it, and so does the index, in merging as in conditions."""
    store = make(settings(), space())
    for at, number in enumerate([2**60 + 1, 0.5]):
        with store.writing() as writer:
            writer.put([Document(f"d{at}", "text", metadata={"n": number})], vectors()[at : at + 1])
    assert [hit.id for hit in store.search(vectors()[:1], 5, where=parse(f"n == {2**60 + 1}"))[0]] == ["d0"]
    for at in range(module.SMALL_SEGMENTS):
        with store.writing() as writer:
            writer.put([Document(f"e{at}", "text")], vectors()[at : at + 1])
    found = store.get(["d0"])[0]
    assert found is not None
    assert found.metadata == {"n": float(2**60)}


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "flipped"])
def test_a_damaged_list_of_what_is_gone_brings_nothing_back(make, damage):
    store = filled(make)
    with store.writing() as writer:
        writer.delete(["d0001"])
    (path,) = store.folder.glob("segments/*/deleted-*.npy")
    packed = np.load(path)
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        np.save(path, packed[:0] if damage == "short" else np.zeros_like(packed))
    with pytest.raises(LeafError, match=r"deleted-.*damaged"):
        FolderStore.open(store.folder)


def test_an_index_whose_making_was_killed_can_be_made(make, tmp_path):
    """What an interrupted write leaves beside the manifest is in nobody's way, another file is."""
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / ".space.json.0123456789ab.tmp").write_text("{")
    assert len(make(settings(), space())) == 0
    with FolderStore.open(tmp_path / "index").writing(), pytest.raises(LeafError, match="being changed by another"):
        make(settings(), space())


def test_without_room_it_stays_as_it_was(make, monkeypatch):
    store = filled(make)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_segment", lambda *_, **__: full())
    with pytest.raises(LeafError, match="no room is left"), store.writing() as writer:
        writer.put([Document("new", "text")], vectors()[:1])
    assert len(FolderStore.open(store.folder)) == 200
    assert not list(store.folder.glob("segments/.*"))


def test_what_a_graph_cannot_reach_is_found_where_all_are_asked_for(make, small_graphs, monkeypatch):
    """A graph that has lost documents gives fewer than `k`: then every row is compared."""
    store = filled(make, "int8")
    monkeypatch.setattr("leaf.search.codes.Graph.candidates", lambda *_: [np.arange(150)])
    assert len(store.search(vectors(1, seed=9), 1000)[0]) == 200
    with store.writing() as writer:
        writer.delete(["d0199"])
    assert len(store.search(vectors(1, seed=9), 1000)[0]) == 199
    assert len(store.search(vectors(1, seed=9), 3)[0]) == 3
