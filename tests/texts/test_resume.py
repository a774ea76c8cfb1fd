"""A texts stage that is killed goes on with what it had read, and ends as if nothing had happened."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leaf.errors import LeafError
from leaf.recipe import Prepare, TextSource
from leaf.texts import hub
from leaf.texts.prepare import SPOOLS, prepare
from leaf.texts.spool import PIECE_ROWS

#: Every attempt is a forked process that a signal may end: (source, rows read), or (shard, 0) when it is written.
KILLER = """
import json, os, signal, sys
from pathlib import Path

from leaf.recipe import Prepare, TextSource
from leaf.texts import hub, prepare, sources, spool

spool.PIECE_ROWS, hub.BATCH_ROWS, sources.BATCH_ROWS = 40, 20, 20
read_all, write_all = spool.batches, prepare.write_shard


def attempt(folder, kill, log):
    def batches(source, *arguments, **more):
        count = 0
        for batch in read_all(source, *arguments, **more):
            with open(log, "a") as file:
                file.writelines(json.dumps([source.name, row.text]) + "\\n" for row in batch.rows)
            yield batch
            count += len(batch.rows)
            if kill and kill[0] == source.name and count >= kill[1]:
                os.kill(os.getpid(), signal.SIGKILL)

    def write_shard(path, rows):
        if kill and kill[0] == path.name:
            os.kill(os.getpid(), signal.SIGKILL)
        return write_all(path, rows)

    spool.batches, prepare.write_shard = batches, write_shard
    entries = [TextSource(**each) for each in json.loads((folder / "sources.json").read_text())]
    facts = prepare.prepare(entries, Prepare(held_out=50, shard_rows=100, seed=3), folder / "texts")
    (folder / "facts.json").write_text(json.dumps(facts))


warm = TextSource(source=sys.argv[2], kind="query")  # what datasets imports, once for all attempts
next(iter(hub.open_hub(warm, warm.source.removeprefix("hub:")).dataset.with_format("arrow").iter(20)))

for name, kills in json.loads(sys.argv[1]).items():
    for number, kill in enumerate([*kills, None]):
        if (pid := os.fork()) == 0:
            attempt(Path(name), kill, Path(name) / f"log-{number}")
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) == (kill is not None), (kill, status)
"""


def write_sources(folder: Path) -> list[dict[str, object]]:
    data = folder / "data"
    for name in ("all", "some", "files"):
        (data / name).mkdir(parents=True)
        for part in range(3):
            texts = [f"{name} {part} text number {n}" for n in range(100)]
            pq.write_table(
                pa.table({"text": texts, "more": texts}), data / name / f"train-{part}.parquet", row_group_size=30
            )
    for part in range(2):
        lines = "".join(json.dumps({"text": f"line {n} of {part}"}) + "\n" for n in range(150))
        (data / f"lines-{part}.jsonl").write_text(lines)
    common = {"kind": "document"}
    return [
        {"source": f"hub:{data / 'all'}", "name": "all", **common},
        {"source": f"hub:{data / 'some'}", "name": "some", "rows": 90, **common},
        {"source": f"hub:{data / 'files'}", "name": "files", "rows": 130, "sample": "files", **common},
        {"source": str(data / "lines-*.jsonl"), "name": "lines", "rows": 200, **common},
    ]


def run(sources: list[dict[str, object]], kills: dict[Path, list[tuple[str, int]]]) -> list[list[list[list[str]]]]:
    """What each attempt read, for every folder."""
    for folder in kills:
        folder.mkdir()
        (folder / "sources.json").write_text(json.dumps(sources))
    plan = json.dumps({str(folder): each for folder, each in kills.items()})
    command = [sys.executable, "-c", KILLER, plan, str(sources[0]["source"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = []
    for folder, each in kills.items():
        logs = [folder / f"log-{number}" for number in range(len(each) + 1)]
        found.append([list(map(json.loads, log.read_text().splitlines())) if log.exists() else [] for log in logs])
    return found


def content(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_run_killed_anywhere_ends_as_an_uninterrupted_one_and_reads_nothing_twice(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    kills = [("all", 110), ("all", 60), ("some", 150), ("files", 90), ("lines", 200), ("part-00002.parquet", 0)]
    (whole,), attempts = run(sources, {tmp_path / "whole": [], tmp_path / "killed": kills})

    assert content(tmp_path / "killed" / "texts") == content(tmp_path / "whole" / "texts")
    assert json.loads((tmp_path / "killed" / "facts.json").read_text()) == json.loads(
        (tmp_path / "whole" / "facts.json").read_text()
    )
    assert {path.suffix for path in (tmp_path / "whole" / "texts").iterdir()} == {".parquet"}  # no spool is left
    # Of 300 + 300 + 130 (in batches of 20, from two files) + 300 rows nothing is read after it was committed. A kill
    # loses what came behind the last piece of 40 rows: of `all` at most 40 + 20 rows each time, and so on; `lines` was
    # 50 rows into its second file, which begins again.
    reads = [(name, text) for attempt in attempts for name, text in attempt]
    assert len(whole) == 300 + 300 + 140 + 300
    assert set(reads) == {(name, text) for name, text in whole}
    again = len(reads) - len(whole)
    assert 0 < again <= 4 * 60 + 60
    for attempt, name in zip(attempts[1:], ["all", "all", "some", "files", "lines"], strict=False):
        assert attempt[0][0] == name  # never from the beginning of what is finished
    assert attempts[-1] == []  # killed while it wrote shards: everything was read
    assert attempts[1][0][1] != "all 0 text number 0"  # inside a source, it goes on where a piece ended


def test_a_hub_data_set_that_cannot_say_where_it_stands_goes_on_with_a_file_or_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = TextSource(**write_sources(tmp_path)[0])
    expected = prepare([source], Prepare(held_out=50), tmp_path / "whole")
    monkeypatch.setattr(hub, "_state", lambda dataset: None)
    monkeypatch.setattr(hub, "BATCH_ROWS", 50)  # two tables a file
    monkeypatch.setattr("leaf.texts.spool.PIECE_ROWS", 40)
    rows_of = hub.rows_of

    def attempt(tables: int) -> tuple[dict[str, Any] | None, int]:
        """The facts, where so many tables suffice, and how many were read."""
        reads = 0

        def counting(table: pa.Table, columns: list[str]) -> Any:
            nonlocal reads
            if reads == tables:
                raise LeafError("reading stopped")
            reads += 1
            return rows_of(table, columns)

        monkeypatch.setattr(hub, "rows_of", counting)
        try:
            return prepare([source], Prepare(held_out=50), tmp_path / "texts"), reads
        except LeafError:
            return None, reads

    assert attempt(1) == (None, 1)  # half a file, of which a piece is written
    assert attempt(3) == (None, 3)  # a file and a half
    assert "it cannot go on where it stopped; reading it from its start" in capsys.readouterr().err
    assert attempt(100) == (expected, 4)  # the two files behind the first
    assert "going on after 100 rows" in capsys.readouterr().err


def test_what_was_read_for_other_settings_is_not_used_and_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("".join(f"text number {n}\n" for n in range(100)))
    source = TextSource(source=str(path), kind="query")
    with pytest.raises(LeafError, match="too few"):
        prepare([source], Prepare(held_out=60), tmp_path / "texts")
    (first,) = (tmp_path / "texts" / SPOOLS).iterdir()
    with pytest.raises(LeafError, match="too few"):
        prepare([source], Prepare(held_out=70), tmp_path / "texts")
    assert list((tmp_path / "texts" / SPOOLS).iterdir()) == [first]  # the same rows serve
    with pytest.raises(LeafError, match="too few"):
        prepare([source], Prepare(held_out=60, max_characters=14), tmp_path / "texts")
    (second,) = (tmp_path / "texts" / SPOOLS).iterdir()
    path.write_text(path.read_text().upper())
    facts = prepare([source], Prepare(held_out=10), tmp_path / "texts")
    assert (first != second, facts["rows"]) == (True, 90)
    assert not (tmp_path / "texts" / SPOOLS).exists()


@pytest.mark.parametrize("file", ["state.json", "piece-00000.parquet"])
def test_a_damaged_spool_is_one_line_and_what_others_put_there_is_passed_over(tmp_path: Path, file: str) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("".join(f"text number {n}\n" for n in range(100)))
    source, spools = TextSource(source=str(path), kind="query"), tmp_path / "texts" / SPOOLS
    with pytest.raises(LeafError, match="too few"):
        prepare([source], Prepare(held_out=60), tmp_path / "texts")
    (spools / ".DS_Store").write_text("")
    (folder,) = spools.glob("*/")
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LeafError, match=rf"{file} is damaged .*; delete {folder} and run again"):
        prepare([source], Prepare(held_out=10), tmp_path / "texts")
    (folder / file).write_bytes(whole)
    assert prepare([source], Prepare(held_out=10), tmp_path / "texts")["rows"] == 90


def test_pieces_are_cut_where_texts_are_many_or_long_and_the_texts_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [TextSource(**each) for each in write_sources(tmp_path)]
    prepare(sources, Prepare(held_out=50), tmp_path / "one")
    assert PIECE_ROWS > 1000  # more rows than there are: one piece
    monkeypatch.setattr("leaf.texts.spool.PIECE_CHARACTERS", 500)
    prepare(sources, Prepare(held_out=50), tmp_path / "many")
    assert content(tmp_path / "one") == content(tmp_path / "many")
