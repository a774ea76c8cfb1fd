import gzip
import json
from pathlib import Path

import pytest

from leaf.errors import LeafError
from leaf.evaluation import datasets
from leaf.evaluation.leak_sets import leak_sets
from leaf.texts.leaks import Benchmarks

EVAL = Path(__file__).parents[3] / "shared" / "data" / "eval"


def beir(folder: Path, text: str = "The liver is an organ.") -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = [{"_id": "d1", "title": "Liver", "text": text}, {"_id": "d2", "text": "No title."}]
    queries = [{"_id": "q1", "text": "What is a liver?"}, {"_id": "q2", "text": "Of the training part"}]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)) + "\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    return folder


def table(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "eval"
    beir(root / "retrieval" / "organs")
    table(root / "sts" / "sts99" / "test.tsv", "sentence1\tsentence2\tscore", "one\ttwo\t1.5", "three\tfour\t2")
    table(root / "intents" / "train.tsv", "text\tlabel", "pay\tbank", "dig\tgarden")
    table(root / "intents" / "test.tsv", "text\tlabel", "save\tbank", "sow\tgarden")
    table(root / "pairs.tsv", "sentence1\tsentence2\tlabel", "five\tsix\t1", "seven\teight\t0")
    table(root / ".hidden" / "notes.tsv", "nothing\there")
    return root


def test_a_tree_gives_every_set_with_all_its_texts_but_no_label_and_no_query_of_another_part(tree: Path) -> None:
    assert {each.name: list(each.texts()) for each in leak_sets([str(tree)])} == {
        "organs": ["What is a liver?", "Liver\nThe liver is an organ.", "\nNo title."],
        "sts99": ["one", "two", "three", "four"],
        "intents": ["save", "sow", "pay", "dig"],
        "pairs": ["five", "six", "seven", "eight"],
    }
    assert {each.name for each in leak_sets([str(tree)])} == {each.name for each in datasets.load_all(tree)}


def test_sets_are_named_by_path_and_counted_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tree / "retrieval" / "organs", tree / "intents" / "test.tsv", tree / "pairs.tsv"]
    assert [each.name for each in leak_sets(map(str, paths))] == ["organs", "intents", "pairs"]
    assert len(list(leak_sets([str(paths[1])])[0].texts())) == 4  # the training part with it
    assert len(leak_sets([str(tree), *map(str, paths)])) == 4
    monkeypatch.chdir(paths[0])
    assert [each.name for each in leak_sets(["."])] == ["organs"]


def test_evaluate_stands_for_the_sets_that_are_evaluated(tree: Path) -> None:
    evaluated = ["held-out-pairs", str(tree / "pairs.tsv")]
    assert [each.name for each in leak_sets(["evaluate"], evaluated)] == ["pairs"]
    assert len(leak_sets(["evaluate", str(tree)], evaluated)) == 4
    assert leak_sets([], evaluated) == []
    with pytest.raises(LeafError, match=r"evaluate\.data names no set to check against"):
        leak_sets(["evaluate"], ["held-out-pairs"])


def test_the_digest_follows_the_content_and_neither_place_nor_compression(tmp_path: Path) -> None:
    first, second = beir(tmp_path / "a" / "set"), beir(tmp_path / "b" / "set")
    (second / "corpus.jsonl.gz").write_bytes(gzip.compress((second / "corpus.jsonl").read_bytes()))
    (second / "corpus.jsonl").unlink()
    [one], [two] = leak_sets([str(first)]), leak_sets([str(second)])
    assert one.digest == two.digest
    assert list(one.texts()) == list(two.texts())
    assert leak_sets([str(beir(first, "Another text."))])[0].digest != one.digest
    # Another part of the queries, and a title that is a part of the text, are other content too.
    table(second / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore", "q2\td1\t1")
    assert leak_sets([str(second)])[0].digest != two.digest


def test_mistakes_name_the_path_and_the_fix(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(
        LeafError, match=r"'BEIR' is no folder and no \.tsv\[\.gz\] file; .* its local copy.* 'evaluate'"
    ):
        leak_sets(["BEIR"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(LeafError, match="empty has no BEIR folder and no"):
        leak_sets([str(tmp_path / "empty")])
    with pytest.raises(LeafError, match=r"two sets are called 'organs', .*retrieval/organs and .*other/organs: rename"):
        leak_sets([str(tree), str(beir(tmp_path / "other" / "organs"))])
    odd = table(tmp_path / "odd.tsv", "question\tanswer", "a\tb")
    with pytest.raises(
        LeafError, match=r"odd\.tsv: the header is \['question', 'answer'\], expected text or sentence1"
    ):
        list(leak_sets([str(odd)])[0].texts())
    short = table(tmp_path / "short.tsv", "text\tlabel", "a\tb", "c")
    with pytest.raises(LeafError, match=r"short\.tsv: row 2 has 1 columns, expected 2"):
        list(leak_sets([str(short)])[0].texts())
    damaged = tmp_path / "damaged.tsv.gz"
    damaged.write_bytes(gzip.compress(b"text\tlabel\na\tb\n")[:-6])
    with pytest.raises(LeafError, match=r"damaged\.tsv\.gz cannot be read"):
        list(leak_sets([str(damaged)])[0].texts())
    with pytest.raises(LeafError, match=r"damaged\.tsv\.gz cannot be read"):
        _ = leak_sets([str(damaged)])[0].digest


@pytest.mark.skipif(not EVAL.is_dir(), reason="the shared evaluation sets are not here")
def test_planted_texts_of_a_real_set_are_found_and_a_title_does_not_hide_the_sentence_behind_it() -> None:
    [cranfield] = leak_sets([str(EVAL / "retrieval" / "cranfield")])
    texts = list(cranfield.texts())
    assert len(texts) == 225 + 1398
    filed = Benchmarks([(cranfield.name, texts)])
    equal = filed.leaks([text.upper() for text in texts])
    assert [leak.how for leak in equal] == ["equal"] * len(texts)
    bodies = [text.partition("\n")[2] for text in texts[225:]]
    found = {leak.row for leak in filed.leaks([f"As we know, {body} And so on." for body in bodies])}
    assert len(found) == len(bodies)
