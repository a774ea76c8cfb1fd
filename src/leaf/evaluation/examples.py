"""Example queries answered by every system side by side, as in the paper's Table 6, for people to look at."""

from collections.abc import Mapping, Sequence
from typing import Any

from leaf.encoder import AsymmetricEncoder, Encoder
from leaf.evaluation.datasets import RetrievalSet
from leaf.evaluation.records import Mode
from leaf.evaluation.retrieval import search, tie_order
from leaf.evaluation.vectors import VectorCache, checked, sides_of
from leaf.progress import progress

#: Characters of a document that are shown, as in Table 6.
SNIPPET = 100


def examples(
    queries: Sequence[str],
    teacher: Encoder,
    students: Mapping[str, Encoder],
    corpus: RetrievalSet,
    cache: VectorCache | None = None,
    *,
    top_k: int = 10,
    batch_size: int = 32,
) -> list[dict[str, Any]]:
    """What the teacher and every student find in `corpus` for each of `queries`, as plain data.

    `[{"query", "dataset", "answers": [{"encoder", "mode", "overlap", "documents": [{"id", "score",
    "text"}]}]}]`: the teacher's answer comes first, `overlap` counts the documents that are also in it, and
    `text` is the beginning of a document.
    """
    if not queries:
        return []
    cache = VectorCache() if cache is None else cache
    systems: list[tuple[str, Mode, Encoder]] = [(teacher.name, "teacher", teacher)]
    for name, student in students.items():
        systems.append((name, "asymmetric", AsymmetricEncoder(student, teacher)))
        systems.append((name, "standard", student))

    order = tie_order(list(corpus.documents))
    to_encode = {id(e) for e in (teacher, *students.values()) if not cache.holds(e, corpus, "documents")}
    found = []
    with progress("answering the example queries", len(to_encode) * len(corpus.documents)) as bar:
        for _, _, encoder in systems:
            query_side, document_side = sides_of(encoder, corpus)
            asked = query_side.encode_query(queries, batch_size=batch_size)
            asked = checked(asked, len(queries), query_side, "the example queries")
            documents = cache.vectors(document_side, corpus, "documents", batch_size=batch_size, advance=bar.advance)
            rows, scores = search(asked, documents, top_k, encoder.similarity, order)
            found.append((rows.tolist(), scores.tolist()))

    shown = [(document, _beginning(text)) for document, text in corpus.documents.items()]

    def answer(system: int, query: int) -> dict[str, Any]:
        name, mode, _ = systems[system]
        rows, scores = (part[query] for part in found[system])
        hits = [
            {"id": shown[row][0], "score": score, "text": shown[row][1]}
            for row, score in zip(rows, scores, strict=True)
        ]
        overlap = len({*rows} & {*found[0][0][query]})
        return {"encoder": name, "mode": mode, "overlap": overlap, "documents": hits}

    return [
        {"query": text, "dataset": corpus.name, "answers": [answer(i, query) for i in range(len(systems))]}
        for query, text in enumerate(queries)
    ]


def _beginning(text: str) -> str:
    return text if len(text) <= SNIPPET else text[: SNIPPET - 1] + "…"
