"""What the tests of evaluation share: a writer of BEIR folders."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

WriteBeir = Callable[..., Path]


@pytest.fixture
def write_beir(tmp_path: Path) -> WriteBeir:
    """Writes texts and judgements as a BEIR folder and returns it."""

    def write(
        documents: Mapping[str, str],
        queries: Mapping[str, str],
        qrels: Mapping[str, Mapping[str, int]],
        name: str = "tiny",
    ) -> Path:
        folder = tmp_path / name
        (folder / "qrels").mkdir(parents=True)
        for file, texts in (("corpus.jsonl", documents), ("queries.jsonl", queries)):
            rows = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
            (folder / file).write_text("\n".join(rows) + "\n")
        judged = [f"{q}\t{d}\t{score}" for q, docs in qrels.items() for d, score in docs.items()]
        (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
        return folder

    return write
