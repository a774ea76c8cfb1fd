"""A recipe: one TOML file that says everything about a run. Frozen, checked, complete in itself.

    from leaf.given import Given
    from leaf.recipe import Recipe

    recipe = Recipe.load("leaf-ir")                      # a recipe that ships
    recipe = Recipe.load("my/recipe.toml")               # or one of your own
    recipe = Recipe.load("leaf-ir", ["train.lr=3e-4"])   # with what one run changes
    recipe = Recipe.load("leaf-fast", given=Given(teacher="my/teacher", queries=["queries.txt"]))

A variant names the recipe it starts from (`extends = "leaf-ir"`) and the fields it changes. This file imports no torch.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from leaf.errors import LeafError

if TYPE_CHECKING:
    from leaf.given import Given

SHIPPED = Path(__file__).parent / "recipes"
#: The recipe where none is named. It has neither a teacher nor texts: whoever runs it gives them (`leaf.given`).
DEFAULT = "leaf-fast"
#: Models that are asked over HTTP begin so; what follows is the provider's own name.
API_SCHEMES = ("openai:", "voyage:", "cohere:")
#: A model that cannot be asked: its vectors are all there is.
VECTORS_SCHEME = "vectors:"
#: Texts never trained on, where nothing else is said and there are enough.
NUM_HELD_OUT = 4096
#: What a recipe may be called: a folder is named so.
RUN_NAME = r"^[a-z0-9][a-z0-9._-]*$"
#: Folders of a run that a student may not take as its name all begin otherwise.
STUDENT_NAME = r"^student(-[a-z0-9][a-z0-9.-]*)?$"


class Section(BaseModel):
    """A part of a recipe: frozen, and an unknown key is an error rather than a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class About(Section):
    """What is known of a source before it is read: `leaf plan` counts with it where the source cannot be asked."""

    rows: Annotated[int, Field(gt=0)] | None = None
    """Rows that it has."""
    tokens: Annotated[float, Field(gt=0)] | None = None
    """Mean tokens of a text, special tokens included, cut at 512."""
    megabytes: Annotated[float, Field(gt=0)] | None = None
    """What is downloaded to read it."""


class TextSource(Section):
    """One `[[texts]]` entry: where training texts come from and how they are asked."""

    source: str
    """`hub:OWNER/NAME` (or `hub:FOLDER`), `installed-docs`, `tokenizer:MODEL`, `vectors` (the texts of
    `teacher.vectors`), or files: a path, a glob, a folder of Parquet; .parquet, .jsonl, .csv, .tsv, .txt (one text a
    line), the text formats also as .gz."""
    name: str | None = None
    """What the `source` column and the counts call it. Default: made from `source`."""
    kind: Literal["query", "document"] | None = None
    """The role of these texts, which picks the prompt. None reads it from `kind_column`."""
    column: str = "text"
    """Column (Parquet, CSV, hub) or key (JSONL) that holds the text."""
    kind_column: str = "kind"
    """Column that holds `query` or `document` (or `doc`) when `kind` is not given."""
    source_column: str | None = None
    """Column that names the source of each row, to keep the counts of a mixed file apart."""
    where: dict[str, str] = {}
    """Keep only rows whose column equals the value, for example `{language = "en"}`."""
    rows: Annotated[int, Field(gt=0)] | None = None
    """Take a sample of so many rows (seed: `prepare.seed`). None takes all."""
    sample: Literal["rows", "files"] = "rows"
    """Hub: `rows` draws uniformly from all rows, and reads all of them for it. `files` reads the data set's files in a
    random order until there are enough rows: a part of the download, but whole files are in or out."""
    config: str | None = None
    """Hub: the configuration (subset) of the data set."""
    configs: tuple[str, ...] = ()
    """Hub: several configurations, each as an entry of its own with `rows` rows; `name` is followed by its name."""
    split: str = "train"
    """Hub: the split."""
    splits: tuple[str, ...] = ()
    """Hub: several splits, likewise."""
    revision: str | None = None
    """Hub: the commit or tag, so that the texts can be had again."""
    packages: tuple[str, ...] = ()
    """installed-docs: import names of the packages to read besides the standard library."""
    licence: str | None = None
    """The licence of the texts, carried into the model card."""
    commercial: bool | None = None
    """Whether the licence allows commercial use; `--commercial` leaves out what says no. None: not known."""
    guard: bool = False
    """General texts that keep an existing student aligned while it adapts to others (`leaf distill --from`)."""
    held_out: bool | None = None
    """`true`: all of its texts are held out and none is trained on. `false`: none is held out, such as texts that a
    student has seen before it adapts. Default: as `prepare.held_out` draws them."""
    about: About = About()
    """What is known of the source before it is read, for `leaf plan`."""

    def entries(self) -> "tuple[TextSource, ...]":
        """Itself, or an entry for every one of `configs` in every one of `splits`."""
        if not self.configs and not self.splits:
            return (self,)
        base = {key: getattr(self, key) for key in self.model_fields_set - {"configs", "splits"}}
        found = []
        for config in self.configs or (self.config,):
            for split in self.splits or (self.split,):
                name = [config] * bool(self.configs) + [split] * bool(self.splits)
                own = {"config": config, "split": split}
                if self.name:
                    own["name"] = " ".join([self.name, *map(str, name)])
                found.append(TextSource(**{**base, **own}))
        return tuple(found)


class Prepare(Section):
    """How texts become shards: what is rejected, what is held out, how they are cut into files."""

    seed: int = 0
    """Decides samples and the held-out split. Every choice is a hash of (seed, text), so order does not matter."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """Keep a uniform sample of so many training texts; `--limit` sets it. None keeps all."""
    held_out: Annotated[int, Field(gt=0)] | None = None
    """Texts never trained on, for the held-out error. None: 4,096, the paper's 128 batches of 32 (§2.2), or a tenth of
    the texts where that is fewer."""
    held_out_pairs: Annotated[int, Field(ge=0)] = 0
    """(query, document) pairs never trained on, written as a retrieval set in BEIR's layout. Needs a source that knows
    pairs (installed-docs)."""
    max_characters: Annotated[int, Field(gt=0)] = 100_000
    """Longer texts are rejected and counted: they are almost always broken extractions."""
    dedup: Literal["normalised", "exact", "none"] = "normalised"
    """`normalised` also drops texts that differ only in case, punctuation and white space."""
    leak_check: tuple[str, ...] = ()
    """Evaluation sets that no text may be in: BEIR folders, `.tsv[.gz]` sets, folders of such sets, or `evaluate` for
    those of `evaluate.data`. A text is in a set if it equals a query or document but for case, punctuation and white
    space, or contains a sentence of one that has eight words or more."""
    leaks: Literal["drop", "refuse"] = "drop"
    """Whether a text that `leak_check` finds is dropped and counted, or stops the run once all are counted."""
    guard_ratio: Annotated[float, Field(gt=0)] = 1.0
    """At most so many training texts of sources with `guard` for each of the others; a sample is kept of more."""
    shard_rows: Annotated[int, Field(gt=0)] = 65_536
    """Texts in one shard: the unit of resume for the teacher pass."""

    def held_out_of(self, available: int) -> int:
        """How many of so many texts are held out, at least one."""
        return self.held_out or max(1, min(NUM_HELD_OUT, available // 10))


class Api(Section):
    """How a teacher behind an API is asked. Nothing here changes a vector but `url`, `dimensions`, `characters` and
    `input_types`."""

    url: str | None = None
    """Root of the API, such as `http://localhost:8000/v1`. Default: the provider's own."""
    key_variable: str | None = None
    """Environment variable of the key. Default: the provider's; none where `url` is given, since a key goes to nobody
    else unasked. `""` sends no key. Keys are never written down."""
    dimensions: Annotated[int, Field(gt=0)] | None = None
    """Ask for vectors of so many dimensions. None: the model's own."""
    input_types: dict[Literal["query", "document"], str] = {}
    """What a server of your own is told each text is (`input_type`), where it wants to know: `leaf serve` takes `query`
    and `document`. Default: the provider's; a plain OpenAI-compatible server is told nothing."""
    characters: Annotated[int, Field(gt=0)] | None = None
    """Cut texts after so many characters before they are sent; what they cost follows. None sends them whole."""
    price: Annotated[float, Field(ge=0)] | None = None
    """US dollars for a million tokens. `--max-cost` and the cost that is shown need it."""
    batch_texts: Annotated[int, Field(gt=0)] | None = None
    """Texts in one request. Default: the provider's limit, at most 256."""
    batch_tokens: Annotated[int, Field(gt=0)] | None = None
    """Tokens in one request, as estimated. Default: within the provider's limit."""
    at_once: Annotated[int, Field(gt=0)] = 8
    """Requests in flight: also the most that a crash can lose after it was billed."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Send no more than this. None: until the service says stop."""
    tokens_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Likewise, in tokens."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds of silence after which a try is given up. Where that is too short it grows, up to four times as long."""


class OwnedVectors(Section):
    """Vectors of the teacher that are already there. `teacher.vectors = "dump.parquet"` is short for `source` alone."""

    source: str
    """Parquet (a file, a glob, a folder) with a text and a vector a row, or `postgresql://HOST/DATABASE` for a table
    with pgvector. A password is left to `PGPASSWORD` or `~/.pgpass`."""
    query: str | None = None
    """PostgreSQL: the SELECT that gives the rows."""
    text: str = "text"
    """Column of the texts."""
    vector: str = "vector"
    """Column of the vectors: a list of numbers, or pgvector's vector, halfvec."""
    kind: str | None = None
    """Column that holds `query` or `document`. None: every text is a document."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        is_database = self.source.startswith(("postgresql://", "postgres://"))
        if is_database and re.search(r"//[^@/]*:[^@/]+@|[?&](ssl)?password=[^&]", self.source):
            raise ValueError("a recipe is copied into run folders; leave the password to PGPASSWORD or ~/.pgpass")
        if is_database and not self.query:
            raise ValueError("a database needs a query, such as 'SELECT text, embedding AS vector FROM documents'")
        if self.query and not is_database:
            raise ValueError(f"query is for postgresql://HOST/DATABASE; '{self.source}' is read whole")
        return self


class Teacher(Section):
    """The model whose space is kept."""

    model: str
    """A Sentence Transformers model: hub id, folder, or `package:NAME/FOLDER`, a folder inside an installed package.
    Or an API: `openai:MODEL` (also of any server that speaks OpenAI's protocol, with `api.url`), `voyage:MODEL`,
    `cohere:MODEL`. Or `vectors:NAME`, a model that cannot be asked: `vectors` are all there is of it."""
    vectors: OwnedVectors | None = None
    """Vectors that the teacher has already given. A text that is among them is never encoded again."""
    api: Api = Api()
    """How it is asked, where it is an API."""
    name: str | None = None
    """A short name for tables. Default: the last part of `model`."""
    revision: str | None = None
    """Hub commit or tag."""
    prompts: dict[Literal["query", "document"], str] = {}
    """Prompts per role, where they differ from those the model ships."""
    max_length: Annotated[int, Field(gt=2)] | None = None
    """Tokens after which a text is cut. None: the model's own."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the teacher computes in; its weights stay float32. `auto`: bfloat16 where the hardware has it and a sample
    of the texts keeps cosine ≥ 0.9999 to float32. Part of the cache key: vectors of two dtypes are not mixed."""
    storage_dtype: Literal["float16", "float32"] = "float16"
    """What the cache stores. float16 holds only where every vector keeps cosine ≥ 0.9999; other shards stay float32."""
    batch_size: Annotated[int, Field(gt=0)] = 32
    """Texts per forward pass."""

    @property
    def is_api(self) -> bool:
        """Whether the teacher is asked over HTTP."""
        return self.model.startswith(API_SCHEMES)

    @property
    def is_remote(self) -> bool:
        """Whether its weights are not to be had: an API, or a model that cannot be asked at all."""
        return self.model.startswith((*API_SCHEMES, VECTORS_SCHEME))

    @field_validator("vectors", mode="before")
    @classmethod
    def _source_alone(cls, data: Any) -> Any:
        return {"source": data} if isinstance(data, str) else data


class Train(Section):
    """How one student is trained: the paper's values by default (§2.2)."""

    loss: Literal["leaf", "leaf+minilm", "leaf+tinybert", "leaf+distilbert"] = "leaf"
    """`leaf` is Eq. 3. The others add what another method would (App. B), to be compared with: they run the teacher
    along and need its tokenizer, `minilm` and `tinybert` also its number of attention heads."""
    kinds: Annotated[tuple[Literal["query", "document"], ...], Field(min_length=1)] = ("query", "document")
    """Which training texts are trained on, for what each kind contributes (Fig. 4). Held-out texts stay all."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """Train on a uniform sample of so many of these texts (seed: `seed`), for the size of an epoch (Fig. 9). A smaller
    sample is part of a larger one. None takes all."""
    evaluations: Annotated[int, Field(gt=0)] = 1
    """Held-out evaluations an epoch, evenly spaced, for its curve (Fig. 10). The best epoch is a whole one."""
    batch_size: Annotated[int, Field(gt=0)] = 32
    """Texts per optimizer step, whatever the number of GPUs and slices."""
    accumulation: Annotated[int, Field(gt=0)] = 1
    """Slices that a batch is cut into where it does not fit in memory; gradients are summed over them."""
    cycles: Annotated[int, Field(gt=0)] = 3
    """Times the learning rate falls from `lr` to `final_lr`."""
    epochs_per_cycle: Annotated[int, Field(gt=0)] = 10
    """Passes over the training texts in each cycle."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate at the start of a cycle."""
    final_lr: Annotated[float, Field(ge=0)] = 1e-5
    """Learning rate at the end of a cycle."""
    row_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of Adagrad for rows of words: a lookup table's, or a Transformer's word embeddings. It needs no
    schedule, spares rare words, and on a CPU its steps cost less, the more rows there are. None: AdamW for all."""
    matrix_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of Muon for the matrices of layers, head and network, where `lr` is at its highest; they fall
    together. Steps are as long as AdamW's at the same rate; 0.003 was the best of those tried. None: AdamW for all."""
    schedule: Literal["linear", "linear-step", "cosine", "constant"] = "linear"
    """`linear` falls once an epoch (App. A.2), `linear-step` and `cosine` every step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises from 0 at the very start."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decay, on every parameter as in torch's default."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradient norm limit. None: no clipping."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout while training. The target is a fixed vector per text, so the default has none."""
    seed: int = 0
    """Orders the texts, draws the sample of `limit`, and seeds dropout."""
    length_window: Annotated[int, Field(gt=0)] = 1
    """Batches over which texts are grouped by length after the shuffle, to save padding. 1: no grouping."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Forward and backward; weights, loss and targets stay float32. `auto`: bfloat16 where the hardware has it."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    """Minutes between resume points; there is also one after every epoch."""
    trackers: tuple[Literal["tensorboard", "trackio"], ...] = ()
    """Where metrics go besides `metrics.jsonl`; needs the extra `track`."""
    keep_checkpoints: bool = False
    """Keep the student of every epoch (`checkpoints/NAME/epoch-003/`), for the robustness margin of §3.3."""


class Student(Section):
    """What is trained: a backbone, its pooling and the head that lifts it to the teacher's width (Eq. 1, Fig. 3)."""

    name: Annotated[str, Field(pattern=STUDENT_NAME)] = "student"
    """Folder inside the run: `student` or `student-SOMETHING`."""
    backbone: str = "teacher"
    """Any Transformers encoder (hub id, folder, `package:…`); `teacher`: start from the teacher's own weights; or the
    name of a student further up in the recipe: start from that one's, once it is trained."""
    revision: str | None = None
    """Hub commit or tag of the backbone."""
    start: str | None = None
    """A student of the same teacher to go on from, weights, head and prompts; `leaf distill --from` sets it. Then
    `backbone`, `revision`, `prompts`, `layers`, `pooling`, `bias`, `ridge_texts`, `phrases` and `hidden`
    say nothing."""
    prompts: dict[Literal["query", "document"], str] = {}
    """Prompts of the student, where its teacher's are not known: behind an API. Default: the teacher's; where its API
    is told queries from documents in another way, `query: ` for queries."""
    layers: tuple[int, ...] | int | None = None
    """Layers of the backbone to keep: which, in order (`[0, 2, 5]`), or how many (`3`), spread evenly from the first to
    the last, halves rounded down: 2 of 6 are 0, 5; 3 of 6 are 0, 2, 5; 4 of 12 are 0, 4, 7, 11; 1 is the last. None
    keeps all; `[]` and `0` are the lookup-table student (no Transformer)."""
    pooling: Literal["mean", "cls"] = "mean"
    """Mean over tokens, as in the paper; cls is the ablation of Fig. 8."""
    bias: bool = True
    """Whether the head has a bias: leaf-ir does, leaf-mt does not."""
    max_length: Annotated[int, Field(gt=2)] | None = None
    """Tokens after which a text is cut. None: the teacher's, as far as the backbone has positions."""
    ridge_texts: Annotated[int, Field(ge=0)] = 10_000
    """Texts for the closed-form start of the head: ridge regression from the untrained backbone's pooled states to the
    teacher's vectors. 0 leaves the head at its random start, as in the paper."""
    table: Literal["teacher", "backbone"] = "teacher"
    """What a lookup table begins with, before the head is fitted: the teacher's vector of each token alone, or the word
    embeddings of the backbone, as also where the teacher is an API or vectors: they are not asked for so many."""
    phrases: Annotated[int, Field(ge=0)] = 0
    """Tokens for phrases of the training texts (`new york`, `how many people`), this many at most: rows of a lookup
    table or word embeddings of a Transformer, whose texts then have fewer tokens and are cut, on average, where they
    were cut without. They need memory and many texts, and tokenising takes longer. For backbones with a WordPiece
    tokenizer, as BERT's."""
    hidden: Annotated[int, Field(ge=0)] = 0
    """Units of a network behind the mean of a lookup table, whose rows are then twice as wide: it learns what words
    mean together. 0: the mean itself."""
    train: dict[str, Any] = {}
    """Fields of `[train]` that are different for this student."""

    @property
    def wants_phrases(self) -> bool:
        """Whether it is given phrases: not where it goes on from a student, which has its tokenizer already."""
        return self.phrases > 0 and self.start is None

    @property
    def wants_network(self) -> bool:
        """Whether it is given a network: a table, and not one that goes on from a student, which keeps what it has."""
        return self.layers == () and self.hidden > 0 and self.start is None

    @field_validator("layers", mode="before")
    @classmethod
    def _which_or_how_many(cls, data: Any) -> Any:
        def counts(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0

        if data is None or (isinstance(data, list | tuple) and all(map(counts, data))):
            return data
        if counts(data):
            return data or ()  # a table has one spelling, whoever reads it
        raise ValueError(f"expected layers to keep, such as [0, 2, 5], or how many, such as 3, got {data!r}")

    def kept_layers(self, total: int) -> tuple[int, ...] | None:
        """The layers to keep of a backbone that has `total`, in order; None where all stay as they are.

        Raises `LeafError` where there are not so many.
        """
        if not isinstance(self.layers, int):
            if self.layers and (last := max(self.layers)) >= total:
                raise LeafError(f"student.layers names layer {last}, but the backbone has layers 0 to {total - 1}")
            return self.layers
        if self.layers > total:
            raise LeafError(
                f"student.layers = {self.layers}, but the backbone has {total} layers; set {total} or fewer"
            )
        if self.layers == total:
            return None
        gaps = self.layers - 1
        if not gaps:
            return (total - 1,)
        # i · (total − 1) / gaps to the nearest, halves down: ⌈x − ½⌉ in whole numbers.
        return tuple(-((gaps - 2 * i * (total - 1)) // (2 * gaps)) for i in range(self.layers))


class Evaluate(Section):
    """What is measured after training."""

    data: tuple[str, ...] = ()
    """BEIR folders, `.tsv[.gz]` sets and folders of these; `held-out-pairs` is the run's own (see
    `prepare.held_out_pairs`)."""
    benchmarks: tuple[str, ...] = ()
    """Public benchmarks by name, through mteb: BEIR, NanoBEIR, "MTEB(eng, v2)", or a task."""
    mirror: str | None = None
    """A folder with local copies of benchmark data sets, which is looked into before the hub."""
    bm25: bool = True
    """Also score BM25 (k1 0.9, b 0.4) on the retrieval sets."""
    truncate: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """Dimensions that vectors are also cut to (Fig. 5 and 6), besides all of them."""
    precisions: tuple[Literal["int8", "int8xbinary", "binary"], ...] = ()
    """What vectors are also rounded to; `int8xbinary` is int8 queries over binary documents."""
    checkpoints: tuple[Literal["standard", "asymmetric"], ...] = ("standard",)
    """Modes in which kept checkpoints (`train.keep_checkpoints`) are scored, for the robustness margin (§3.3)."""
    examples: tuple[str, ...] = ()
    """Queries answered by the teacher and by every student in the report, side by side (Table 6)."""


class Export(Section):
    """The ONNX files of every student, for queries without torch."""

    precisions: tuple[Literal["fp32", "fp16", "q8", "q8-portable", "q4", "q4f16"], ...] = (
        "fp32",
        "fp16",
        "q8",
        "q4",
        "q4f16",
    )
    """What weights are stored as, a file each; [] writes none. `q8-portable` is for x86 CPUs without VNNI."""


class Index(Section):
    """An index of the run's own documents, with the vectors that training has bought; `leaf search` asks it."""

    precision: Literal["float32", "float16", "int8", "binary"] = "int8"
    """What is searched first; the best are ranked by the vectors as they were bought, in float16 at least."""
    truncate_dim: Annotated[int, Field(ge=1)] | None = None
    """Leading dimensions that are kept; None keeps all."""


class Sweep(Section):
    """Variants of one student, for `leaf sweep`: every combination of the values in `grid`, times every case."""

    student: str | None = None
    """Which of the recipe's students is varied; the others are left out. Default: the first."""
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    """`student.FIELD` or `train.FIELD` → the values to try. `train.seed` repeats the rest: tables show the mean over
    seeds and its spread."""
    cases: tuple[dict[str, Any], ...] = ()
    """Settings that change together, such as a batch size and the learning rate that fits it: each entry a `name`
    (`[a-z0-9.-]`) and `student.FIELD`s or `train.FIELD`s."""

    @field_validator("grid", "cases", mode="before")
    @classmethod
    def _dotted(cls, data: Any) -> Any:
        """TOML reads a dotted key without quotes as a table in a table; here both spellings are one."""
        if isinstance(data, dict):
            return _dotted(data)
        return [_dotted(each) if isinstance(each, dict) else each for each in data] if isinstance(data, list) else data

    @model_validator(mode="after")
    def _known_settings(self) -> Self:
        if not self.grid and not self.cases:
            raise ValueError("nothing is varied; give [sweep.grid], [[sweep.cases]] or both")
        for key, values in self.grid.items():
            for value in values:
                _check_setting(key, value)
        for case in self.cases:
            name = case.get("name")
            if not isinstance(name, str) or not re.fullmatch(STUDENT_NAME, f"student-{name}"):
                raise ValueError(f"a case needs a name of a-z, 0-9, dots and hyphens, got {name!r}")
            for key, value in case.items():
                if key != "name":
                    _check_setting(key, value)
                if key in self.grid:
                    raise ValueError(f"'{key}' is in the grid and in case '{name}'; keep it in one of them")
        return self


class Recipe(Section):
    """A whole run. `[student]` is short for a single `[[students]]`."""

    name: Annotated[str, Field(pattern=RUN_NAME)]
    """Names the run folder `runs/NAME`."""
    description: str = ""
    """One line for `leaf recipes`."""
    teacher: Teacher
    students: tuple[Student, ...]
    texts: Annotated[tuple[TextSource, ...], Field(min_length=1)]
    prepare: Prepare = Prepare()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()
    index: Index | None = None
    """`[index]`, empty or not, makes one; without it there is none."""
    sweep: Sweep | None = None
    """Variants of one student instead of the students as they are; see `leaf.sweep`."""

    @model_validator(mode="before")
    @classmethod
    def _one_student(cls, data: Any) -> Any:
        if isinstance(data, dict) and "student" in data:
            if "students" in data:
                raise ValueError("give either [student] or [[students]], not both; --from adapts a single [student]")
            data = {**data, "students": [data["student"]]}
            del data["student"]
        return data

    @field_validator("texts")
    @classmethod
    def _one_entry_each(cls, texts: tuple[TextSource, ...]) -> tuple[TextSource, ...]:
        return tuple(entry for source in texts for entry in source.entries())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [student.name for student in self.students]
        if not names:
            raise ValueError("students: a recipe needs a [student]")
        if len(set(names)) != len(names):
            raise ValueError(f"students: names must differ, got {', '.join(names)}")
        if "held-out-pairs" in self.evaluate.data and not self.prepare.held_out_pairs:
            raise ValueError("evaluate.data names held-out-pairs, but prepare.held_out_pairs is 0")
        for student in self.students:
            self.train_of(student)
            if self.teacher.is_remote and student.backbone == "teacher" and student.start is None:
                raise ValueError(
                    f"{student.name} begins from its teacher's weights, and of {self.teacher.model} there are none; "
                    "set backbone to a Transformers encoder (--backbone MODEL)"
                )
            if (above := self.above(student)) is not None:
                if names.index(above.name) >= names.index(student.name):
                    raise ValueError(f"{student.name} begins from {above.name}, which has to stand before it")
                if above.layers == ():
                    raise ValueError(f"{student.name} begins from {above.name}, a lookup table, which has no layers")
        if self.teacher.model.startswith(VECTORS_SCHEME) and self.teacher.vectors is None:
            raise ValueError(f"teacher.model {self.teacher.model} cannot be asked; give its vectors in teacher.vectors")
        for field in ("max_length", "revision"):
            if self.teacher.is_remote and getattr(self.teacher, field) is not None:
                raise ValueError(
                    f"teacher.{field} is for a model with weights, and of {self.teacher.model} there are none; leave "
                    "it out (an API's texts are cut with teacher.api.characters)"
                )
        if self.teacher.api != Api() and not self.teacher.is_api:
            raise ValueError(
                f"teacher.api is for a model behind an API, and {self.teacher.model} is none; write "
                f"{' or '.join(f'{scheme}MODEL' for scheme in API_SCHEMES)}"
            )
        return self

    def above(self, student: Student) -> Student | None:
        """The student of this recipe whose layers `student` begins with; None where it begins from a model."""
        if student.start is not None:
            return None
        return next((each for each in self.students if each.name == student.backbone), None)

    def from_model(self, student: Student, total: int | None) -> Student:
        """`student` with those above it taken for their layers alone, so that it begins from a model of `total` layers.

        For what is asked before any is trained. Where `total` is not known, None, `layers` still says how many, but no
        longer which. Raises `LeafError` for layers that the one above has not.
        """
        if (above := self.above(student)) is None:
            return student
        above = self.from_model(above, total)
        layers = student.layers
        if total is not None:
            held = above.kept_layers(total)
            held = tuple(range(total)) if held is None else held
            kept = student.kept_layers(len(held))
            layers = held if kept is None else tuple(held[layer] for layer in kept)
        return student.model_copy(update={"backbone": above.backbone, "revision": above.revision, "layers": layers})

    def train_of(self, student: Student) -> Train:
        """The `[train]` settings of one student: the recipe's, with the student's own on top."""
        return Train.model_validate({**self.train.model_dump(), **student.train})

    @classmethod
    def parse(cls, data: Mapping[str, Any], origin: str = "recipe") -> Self:
        """A recipe from plain data. Raises `LeafError` with the field, what is wrong and the nearest known key."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise LeafError(f"{origin}: " + "; ".join(_explain(each) for each in error.errors())) from error

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        overrides: Sequence[str] = (),
        *,
        under: Mapping[str, Any] | None = None,
        given: "Given | None" = None,
    ) -> Self:
        """Reads a shipped recipe by name or a TOML file by path, follows `extends`, applies `table.field=value`s.

        Tables of `under` stand in where the recipe has none of that name; `given` replaces what it has, before the
        overrides. Raises `LeafError` for what is not to be read, wrong or missing, in one line.
        """
        data = {**(under or {}), **_read(str(name_or_path))}
        if given is not None:
            data = given.complete(data)
        for override in overrides:
            _set(data, override)
        return cls.parse(data, origin=str(name_or_path))

    def to_toml(self, *, defaults: bool = True) -> str:
        """The resolved recipe as TOML; `Recipe.load` of it gives this recipe again, also without what is a default."""
        data = self.model_dump(mode="json", exclude_none=True, exclude_defaults=not defaults)
        return tomli_w.dumps(data)


def shipped_recipes() -> dict[str, Recipe]:
    """The recipes inside the package, by name; `DEFAULT` with names in place of a teacher and of texts."""
    from leaf.given import EXAMPLE

    names = sorted(path.stem for path in SHIPPED.glob("*.toml"))
    return {name: Recipe.load(name, given=EXAMPLE if name == DEFAULT else None) for name in names}


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` on top: tables are merged key by key, everything else (lists too) is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        known = merged.get(key)
        merged[key] = merge(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


def _read(name_or_path: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if path.is_file():
            raise LeafError(
                f"'{path}' is no recipe; texts are given with --queries, --documents or --texts, and a pattern needs "
                f"quotes: --documents '*{path.suffix}'"
            )
        path = SHIPPED / f"{name_or_path}.toml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in SHIPPED.glob("*.toml")))
        raise LeafError(f"no recipe '{name_or_path}': give a .toml file, or one of {known}")
    if str(path) in seen:
        raise LeafError(f"{path} extends itself: {' → '.join((*seen, str(path)))}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LeafError(f"{path} is not valid TOML: {error}") from error
    base = data.pop("extends", None)
    if base is None:
        return data
    beside = path.parent / base
    inherited = _read(str(beside) if beside.is_file() else base, (*seen, str(path)))
    if "student" in data or "students" in data:  # the variant's students replace the base's, in either spelling
        table = data.get("student")
        data = {**data, "student": merge(inherited.get("student", {}), table)} if table is not None else data
        inherited = {key: value for key, value in inherited.items() if key not in ("student", "students")}
    return merge(inherited, data)


def _dotted(table: dict[str, Any]) -> dict[str, Any]:
    """`{"train": {"lr": 1}}` as `{"train.lr": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        inner = {f"{key}.{field}": each for field, each in value.items()} if isinstance(value, dict) else {key: value}
        if twice := [each for each in inner if each in flat]:
            raise ValueError(f"'{twice[0]}' is given twice, with quotes and without; keep one")
        flat |= inner
    return flat


def _check_setting(key: str, value: Any) -> None:
    """Raises `ValueError` unless `key` is a field of a student or of its training that may have this value."""
    table, _, field = key.partition(".")
    sections: dict[str, type[Section]] = {"student": Student, "train": Train}
    if table not in sections or not field or key in ("student.name", "student.train"):
        raise ValueError(f"'{key}' cannot be varied; write student.FIELD or train.FIELD")
    try:
        sections[table].model_validate({field: value})
    except ValidationError as error:
        # What has no location is about fields together; the students of the grid are checked for that.
        if wrong := [_explain({**each, "loc": (table, *each["loc"])}) for each in error.errors() if each["loc"]]:
            raise ValueError("; ".join(wrong)) from error


def _set(data: dict[str, Any], override: str) -> None:
    """Applies one `table.field=value`; the value is read as TOML, or as a plain string where it is not.

    One of `train` is for every student, whatever a student's own `train` says.
    """
    path, separator, text = override.partition("=")
    if not separator:
        raise LeafError(f"'{override}' is not a setting: write table.field=value, for example train.lr=3e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, field = path.strip().split(".")
    if tables == ["train"]:
        several = data.get("students")
        for student in [data.get("student"), *(several if isinstance(several, list) else ())]:
            if isinstance(student, dict) and isinstance(student.get("train"), dict):
                student["train"] = {key: each for key, each in student["train"].items() if key != field}
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise LeafError(f"'{override}': {table} is a list, which a single setting cannot change; edit the recipe")
    data[field] = value


def _explain(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    where = ".".join(location) or "recipe"
    if error["type"] == "extra_forbidden":
        section = _section_at(location[:-1])
        close = difflib.get_close_matches(location[-1], section.model_fields, n=1) if section else []
        return f"unknown key '{where}'" + (f" (did you mean '{close[0]}'?)" if close else "")
    if error["type"] == "missing":
        fix = {
            "teacher": "; give --teacher MODEL, or [teacher] in a recipe",
            "texts": "; give --queries FILE, --documents FILE or both, or [[texts]] in a recipe",
        }
        return f"'{where}' is missing" + fix.get(where, "")
    message = error["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    arrived = "" if error["type"] == "value_error" else f", got {error['input']!r}"
    return f"'{where}': {message[0].lower()}{message[1:]}{arrived}"


def _section_at(location: Sequence[str]) -> type[Section] | None:
    sections: dict[str, type[Section]] = {
        "teacher": Teacher, "student": Student, "students": Student, "texts": TextSource,
        "prepare": Prepare, "train": Train, "evaluate": Evaluate, "export": Export, "index": Index, "sweep": Sweep,
    }  # fmt: skip
    inside: dict[str, type[Section]] = {"api": Api, "vectors": OwnedVectors, "about": About}
    if not location:
        return Recipe
    return inside.get(location[-1]) or sections.get(location[0])
