"""mteb's interfaces over ours: an `Encoder` as an mteb model, our datasets as mteb tasks. Importing this imports mteb.

    import mteb
    from leaf.evaluation.datasets import load
    from leaf.evaluation.mteb_adapter import MtebEncoder, as_task
    mteb.evaluate(MtebEncoder(encoder), mteb.get_tasks(tasks=["SciFact"]))
    mteb.evaluate(MtebEncoder(encoder), as_task(load("my-set")))

`leaf.evaluation.benchmarks` runs whole benchmarks with it.
"""

import logging
import re
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

from leaf.encoder import AsymmetricEncoder, Encoder, Role, Vectors
from leaf.errors import LeafError
from leaf.evaluation.datasets import (
    MAX_CLUSTERED_TEXTS,
    SEED,
    ClassificationSet,
    ClusteringSet,
    Dataset,
    PairSet,
    RetrievalSet,
    StsSet,
)
from leaf.evaluation.vectors import PART_TEXTS, VectorCache
from leaf.files import digest
from leaf.progress import Bar, progress

try:
    import datasets as hf
    import huggingface_hub.constants
    from mteb.abstasks import (
        AbsTask,
        AbsTaskClassification,
        AbsTaskClustering,
        AbsTaskPairClassification,
        AbsTaskRetrieval,
        AbsTaskSTS,
    )
    from mteb.abstasks.task_metadata import TaskMetadata, TaskType
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.models.search_wrappers import SearchEncoderWrapper
    from mteb.similarity_functions import cos_sim, dot_score, pairwise_cos_sim, pairwise_dot_score
    from mteb.types import PromptType
    from tqdm.std import tqdm  # type: ignore[import-untyped]
except ImportError as error:
    raise LeafError(f"benchmarks need mteb 2.20 or later ({error}): pip install 'leaf[eval]'") from error

#: Revision of an encoder that does not tell what its vectors depend on (`identity()`).
UNIDENTIFIED = "unidentified"


def is_two_sided(task: TaskMetadata) -> bool:
    """Whether a task has queries and documents, so that standard and asymmetric differ (Table 7, note *)."""
    return "Retrieval" in task.type or "Reranking" in task.type


def sides(encoder: Encoder) -> tuple[Encoder, Encoder]:
    """What encodes queries and what documents."""
    if isinstance(encoder, AsymmetricEncoder):
        return encoder.queries, encoder.documents
    return encoder, encoder


def model_meta(encoder: Encoder, name: str | None = None) -> ModelMeta:
    """What mteb files results under: `leaf/<name>`, and as revision a digest of all that can change a vector.

    Results of two weights under one name so lie in two folders. `name` None takes the encoder's own; a pair is called
    `<queries>-asym-<documents>`.
    """
    queries, documents = sides(encoder)
    parts = [queries] if documents is queries else [queries, documents]
    name = name or "-asym-".join(part.name for part in parts)
    asked = [getattr(part, "identity", None) for part in parts]
    identities = [identity() if callable(identity) else None for identity in asked]
    known = all(identity is not None for identity in identities)
    return ModelMeta.create_empty(
        {
            "name": "leaf/" + re.sub(r"[^\w.+-]+", "_", name),
            "revision": digest(identities)[:16] if known else UNIDENTIFIED,
            "embed_dim": encoder.dim,
            "n_parameters": getattr(parts[0], "num_parameters", None),
            "similarity_fn_name": ScoringFunction.from_str(encoder.similarity),
            "modalities": ["text"],
        }
    )


class MtebEncoder:
    """An `Encoder` as mteb's `EncoderProtocol`, its vectors asked of a `VectorCache`.

    mteb says what a text is: queries are encoded as queries, all else as documents, hence without a query prompt. Of a
    pair, the document encoder answers for documents of retrieval and reranking, and for nothing else.
    """

    def __init__(
        self,
        encoder: Encoder,
        cache: VectorCache | None = None,
        *,
        meta: ModelMeta | None = None,
        batch_size: int = 32,
    ) -> None:
        self.encoder = encoder
        self.mteb_model_meta = meta or model_meta(encoder)
        self._queries, self._documents = sides(encoder)
        self._cache = VectorCache() if cache is None else cache
        self._batch_size = batch_size
        self._bar: Bar | None = None
        self.encoded: list[tuple[Role, int, str]] = []
        """Role, number and digest of the texts of every call, for whoever wants to know what a score was made from."""

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: TaskMetadata,
        prompt_type: PromptType | None = None,
        **_: Any,
    ) -> Vectors:
        """Vectors float32 `[n, dim]` of the texts in batches `{"text": [...]}`."""
        texts = [text for batch in inputs for text in batch["text"]]
        role: Role = "query" if prompt_type is PromptType.query else "document"
        document_side = prompt_type is PromptType.document and is_two_sided(task_metadata)
        encoder = self._documents if document_side else self._queries
        what = f"{'queries' if role == 'query' else 'documents'} of {task_metadata.name}"
        self.encoded.append((role, len(texts), digest(texts)))
        with self.counting(f"{task_metadata.name}: {encoder.name}", len(texts)) as bar:
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                bar.advance(count)

            vectors = self._cache.encode(encoder, texts, role, what, batch_size=self._batch_size, advance=advance)
            bar.advance(len(texts) - done)  # those the cache held, or that occur twice
        if len(texts) >= PART_TEXTS and callable(getattr(encoder, "identity", None)):
            # A part of a corpus of millions: on disk, where the cache has one, and too much for memory.
            self._cache.forget()
        return vectors

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarities `[n, m]` of all with all."""
        function = cos_sim if self.encoder.similarity == "cosine" else dot_score
        return function(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarities `[n]` of each with its partner."""
        function = pairwise_cos_sim if self.encoder.similarity == "cosine" else pairwise_dot_score
        return function(embeddings1, embeddings2)

    @contextmanager
    def counting(self, description: str, total: int) -> Iterator[Bar]:
        """One progress bar over texts; inside another one, that other."""
        if self._bar is not None:
            yield self._bar
            return
        with progress(description, total) as self._bar:
            try:
                yield self._bar
            finally:
                self._bar = None


class RecordingSearch(SearchEncoderWrapper):
    """mteb's own exact search, which keeps what it found: per-query values are made from it."""

    def __init__(self, model: MtebEncoder) -> None:
        # A corpus is encoded in the parts that the cache keeps on disk.
        super().__init__(model, corpus_chunk_size=PART_TEXTS)
        self._encoder = model
        self.runs: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
        """(split, subset) → query id → document id → score."""

    def search(
        self, queries: Any, *, task_metadata: TaskMetadata, hf_split: str, hf_subset: str, **more: Any
    ) -> dict[str, dict[str, float]]:
        """As mteb's, with one progress bar for both sides."""
        place: dict[str, Any] = {"task_metadata": task_metadata, "hf_split": hf_split, "hf_subset": hf_subset}
        total = len(queries) + len(self.task_corpus or ())
        with self._encoder.counting(f"{task_metadata.name}: {self._encoder.encoder.name}", total):
            run: dict[str, dict[str, float]] = super().search(queries, **place, **more)
        self.runs[hf_split, hf_subset] = run
        return run


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps mteb, datasets and the hub's client from logging, warning and showing bars: ours say what is going on."""
    loggers = [logging.getLogger(name) for name in ("mteb", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    make_bar = tqdm.__init__
    bars = not hf.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        hf.disable_progress_bars()
        # Some of mteb's bars have no switch.
        tqdm.__init__ = partialmethod(make_bar, disable=True)
        try:
            yield
        finally:
            tqdm.__init__ = make_bar
            if bars:
                hf.enable_progress_bars()
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def offline() -> Iterator[None]:
    """Lets datasets look into its local cache only; left to itself it retries for half a minute a data set."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE, hf.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = hf.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, hf.config.HF_HUB_OFFLINE = before


def as_task(dataset: Dataset, languages: Sequence[str] = ("eng-Latn",)) -> AbsTask:
    """A dataset of ours as a task that mteb scores, with the numbers of `leaf.evaluation.evaluate`.

    `languages` are only noted in mteb's results. Documents with the id of their query are no hits.
    """
    kinds: dict[type[Any], type[_Local]] = {
        RetrievalSet: _LocalRetrieval,
        StsSet: _LocalSts,
        PairSet: _LocalPairs,
        ClassificationSet: _LocalClassification,
        ClusteringSet: _LocalClustering,
    }
    return kinds[type(dataset)](dataset, languages)


class _Local(AbsTask):
    """A task whose data is in memory."""

    type_: TaskType
    main_score: str

    def __init__(self, dataset: Any, languages: Sequence[str]) -> None:
        self.leaf_dataset = dataset
        self.metadata = TaskMetadata(
            name=dataset.name,
            description=f"{dataset.name}, a local set",
            type=self.type_,
            main_score=self.main_score,
            eval_langs=list(languages),
            dataset={"path": f"local/{dataset.name}", "revision": dataset.digest[:16]},
        )
        super().__init__(seed=SEED)

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        """Brings the data into mteb's shape."""
        if not self.data_loaded:
            self.dataset = self._data()
            self.data_loaded = True

    def unload_data(self) -> None:
        """Frees mteb's copy; `load_data` makes it again."""
        self.dataset, self.data_loaded = None, False

    @abstractmethod
    def _data(self) -> Any:
        """The data as mteb's loaders return it."""


class _LocalRetrieval(_Local, AbsTaskRetrieval):
    type_, main_score, ignore_identical_ids = "Retrieval", "ndcg_at_10", True

    def _data(self) -> Any:
        own: RetrievalSet = self.leaf_dataset
        split = {
            side: hf.Dataset.from_dict({"id": list(texts), "text": list(texts.values())})
            for side, texts in (("queries", own.queries), ("corpus", own.documents))
        }
        # pytrec_eval takes whole numbers only.
        qrels = {query: {key: int(score) for key, score in judged.items()} for query, judged in own.qrels.items()}
        return {"default": {"test": {**split, "relevant_docs": qrels, "top_ranked": None}}}


class _LocalSts(_Local, AbsTaskSTS):
    type_, main_score = "STS", "cosine_spearman"

    def _data(self) -> Any:
        return hf.DatasetDict({"test": _pairs(self.leaf_dataset, score=self.leaf_dataset.scores)})


class _LocalPairs(_Local, AbsTaskPairClassification):
    type_, main_score = "PairClassification", "cosine_ap"

    def _data(self) -> Any:
        return hf.DatasetDict({"test": _pairs(self.leaf_dataset, labels=self.leaf_dataset.labels)})


class _LocalClassification(_Local, AbsTaskClassification):
    type_, main_score = "Classification", "accuracy"

    def _data(self) -> Any:
        own: ClassificationSet = self.leaf_dataset
        # Numbers in the order of the names: mteb's average precision of two classes takes no names.
        numbers = {label: number for number, label in enumerate(sorted({label for _, label in own.train}))}
        return hf.DatasetDict(
            {
                split: hf.Dataset.from_dict(
                    {"text": [text for text, _ in rows], "label": [numbers[label] for _, label in rows]}
                )
                for split, rows in (("train", own.train), ("test", own.test))
            }
        )


class _LocalClustering(_Local, AbsTaskClustering):
    type_, main_score = "Clustering", "v_measure"
    max_document_to_embed, max_fraction_of_documents_to_embed = MAX_CLUSTERED_TEXTS, None

    def _data(self) -> Any:
        columns = {"sentences": list(self.leaf_dataset.texts), "labels": list(self.leaf_dataset.labels)}
        return hf.DatasetDict({"test": hf.Dataset.from_dict(columns)})


def _pairs(dataset: StsSet | PairSet, **gold: Sequence[float]) -> hf.Dataset:
    first, second = (list(side) for side in zip(*dataset.pairs, strict=True))
    return hf.Dataset.from_dict({"sentence1": first, "sentence2": second, **{key: list(gold[key]) for key in gold}})
