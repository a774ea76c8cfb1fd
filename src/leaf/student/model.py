"""The student of Eq. 1: how it is built, run while training, and saved.

    Transformer → Pooling(mean) → Dense(identity) → Normalize, the last only if the teacher's vectors have unit length

It *is* a Sentence Transformers model from the first step, so nothing is converted, and nothing can be lost, on saving.
The lookup-table student (`layers = 0`) is `StaticEmbedding → Normalize`: a linear head commutes with a mean, so the
head of a student without layers is folded into its table. A mean of words cannot say what they mean together, which
a network behind it can: `StaticEmbedding → Dense(ReLU) → Dense(identity) → Normalize` (`hidden`), the deep averaging
network of Iyyer et al. (2015, https://aclanthology.org/P15-1162).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
)
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.models import resolve_model
from leaf.packed import (
    ATTENTION,
    Features,
    can_pack,
    first_position,
    is_packed,
    pack,
    packed_first,
    packed_mean,
    packed_states,
    pad,
)
from leaf.recipe import Student as Settings
from leaf.student.ridge import Head
from leaf.teacher.model import load_sentence_transformer
from leaf.tokens import ROLES, Tokenizer

#: Where every reader finds each module. Releases before 5.4, text-embeddings-inference and vLLM mis-read newer paths
#: without a word (wrong pooling, no Dense), and newer releases read these.
MODULE_PATH = "sentence_transformers.models."
#: Module configs in the words that all of them know: newer ones are errors to older readers, and not the reverse.
_CONFIGS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "?_Pooling/config.json": lambda config: {
        "word_embedding_dimension": config["embedding_dimension"],
        "pooling_mode_cls_token": config["pooling_mode"] == "cls",
        "pooling_mode_mean_tokens": config["pooling_mode"] == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    },
    "?_Dense/config.json": lambda config: {
        key: config[key] for key in ("in_features", "out_features", "bias", "activation_function")
    },
}


class Student(nn.Module):
    """A Sentence Transformers model in training, with the prompts of its teacher."""

    def __init__(self, model: SentenceTransformer, prompts: Mapping[Role, str]) -> None:
        super().__init__()
        self.model = model
        self.prompts = dict(prompts)
        self.packed = self.is_table
        model.prompts.update(prompts.items())

    @property
    def first(self) -> Any:
        """The module that reads token ids: a Transformer or, for a table, a StaticEmbedding."""
        return self.model[0]

    @property
    def backbone(self) -> Any:
        """The Transformers encoder; a table has none."""
        return self.first.auto_model

    @property
    def head(self) -> nn.Linear:
        """The linear map to the teacher's width; a table has it folded in."""
        dense: Any = self.model[2]
        assert isinstance(dense.linear, nn.Linear)
        return dense.linear

    @property
    def network(self) -> list[Dense]:
        """The layers behind the mean of a table, first to last; none where the mean is the vector."""
        return [each for each in self.model if isinstance(each, Dense)] if self.is_table else []

    @property
    def normalises(self) -> bool:
        """Whether vectors leave with unit length."""
        return isinstance(self.model[-1], Normalize)

    @property
    def is_table(self) -> bool:
        """Whether this is the lookup-table student."""
        return isinstance(self.first, StaticEmbedding)

    @property
    def num_parameters(self) -> int:
        """Trained parameters: backbone and head."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def num_layers(self) -> int:
        """Transformer layers."""
        return 0 if self.is_table else int(self.backbone.config.num_hidden_layers)

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below this."""
        return int(self._embedding.num_embeddings)

    @property
    def rows(self) -> nn.Parameter:
        """A row a token, float32 `[vocabulary_size, width]`: the word embeddings or, of a table, all there is."""
        weight: nn.Parameter = self._embedding.weight
        return weight

    @property
    def _embedding(self) -> Any:
        return self.first.embedding if self.is_table else self.backbone.get_input_embeddings()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Makes the token ids that Sentence Transformers will make at query time, prompts included."""
        return Tokenizer(self.first, self.prompts)

    @cached_property
    def can_pack(self) -> bool:
        """Whether the packed path gives this student's vectors too; a table has no other."""
        return self.is_table or can_pack(self.backbone)

    def use_packing(self, on: bool) -> None:
        """Chooses the packed path, where the student has one, or the padded one: the same vectors at another speed."""
        self.packed = self.is_table or (on and self.can_pack)
        if not self.is_table:
            self.backbone.set_attn_implementation(ATTENTION if self.packed else "sdpa")

    def use_sparse_rows(self, on: bool) -> None:
        """Whether the gradient of `rows` is sparse: of the rows that a batch met, and no others."""
        self._embedding.sparse = on

    def collate(self, ids: NDArray[Any], lengths: NDArray[Any]) -> Features:
        """A batch as this student reads it, from its token ids end to end and the tokens of each text, `[n]`."""
        if self.is_table:
            return pack(ids, lengths)
        if self.packed:
            return pack(ids, lengths, self._first_position)
        return pad(ids, lengths, self.first.tokenizer.pad_token_id or 0)

    def forward(self, features: Features, compute_dtype: torch.dtype = torch.float32) -> Tensor:
        """Vectors `[n, d]` in float32 (Eq. 1). Only the backbone, or a table's network, computes in `compute_dtype`."""
        pooled = self.pool(features, compute_dtype)
        if self.network:
            with computing_in(compute_dtype, features):
                for dense in self.network:
                    pooled = dense.activation_function(dense.linear(pooled))
        return self._lift(pooled.float())

    def vectors_of(self, states: Tensor, features: Features) -> Tensor:
        """What `forward` makes of the backbone's token states, once it has them."""
        return self._lift(self._pool_states(states, features))

    def pool(self, features: Features, compute_dtype: torch.dtype = torch.float32) -> Tensor:
        """Pooled states, float32 `[n, d']`: what the head is fitted on."""
        if self.is_table:
            return self._mean_of_table(features)
        with computing_in(compute_dtype, features):
            if is_packed(features):
                states = packed_states(self.backbone, features)
            else:
                states = self.first(dict(features))["token_embeddings"]
        return self._pool_states(states, features)

    def _pool_states(self, states: Tensor, features: Features) -> Tensor:
        states = states.float()
        if is_packed(features):
            return packed_mean(states, features) if self._pooling == "mean" else packed_first(states, features)
        pooled: Tensor = self.model[1]({"token_embeddings": states, **features})["sentence_embedding"]
        return pooled

    def _lift(self, pooled: Tensor) -> Tensor:
        """The head, which a table has none of, and the norm."""
        vectors = pooled if self.is_table else self.head(pooled)
        return nn.functional.normalize(vectors, dim=-1) if self.normalises else vectors

    def _mean_of_table(self, features: Features) -> Tensor:
        table = self.first.embedding.weight
        if table.is_cuda:  # embedding_bag's backward pass there cannot be captured
            return packed_mean(nn.functional.embedding(features["input_ids"], table), features)
        return nn.functional.embedding_bag(
            features["input_ids"],
            table,
            features["cu_seqlens"][:-1].long(),
            mode="mean",
            sparse=self._embedding.sparse,
        )

    @cached_property
    def _first_position(self) -> int:
        return first_position(self.backbone)

    @property
    def _pooling(self) -> str:
        pooling: Any = self.model[1]
        return str(pooling.pooling_mode)

    def token_texts(self) -> list[str]:
        """Every token of a table, by id, as it reads in a text: without the marker of a word's continuation."""
        tokenizer = self.first.tokenizer
        decoded = (tokenizer.decode([each], skip_special_tokens=False) for each in range(self.vocabulary_size))
        return [text.removeprefix("##").strip() for text in decoded]

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Takes a Rust tokenizer that knows more tokens: each begins as the mean of those it was until now.

        A text of a Transformer is then cut where the tokenizer cuts it: its positions are those of longer tokens.
        """
        known, rows = self.tokenizer.rust, self.rows.detach()
        texts = [tokenizer.decode([each]) for each in range(len(rows), tokenizer.get_vocab_size())]
        pieces = [each.ids for each in known.encode_batch(texts, add_special_tokens=False)]
        rows = torch.cat([rows, torch.stack([rows[each].mean(dim=0) for each in pieces])]) if pieces else rows
        if self.is_table:
            self.model[0] = StaticEmbedding(tokenizer, embedding_weights=rows)
        else:
            own = self.first.tokenizer
            self.first.processor = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
                tokenizer_object=tokenizer,
                model_max_length=tokenizer.truncation["max_length"] if tokenizer.truncation else own.model_max_length,
                padding_side=own.padding_side,
                truncation_side=own.truncation_side,
                model_input_names=own.model_input_names,
                clean_up_tokenization_spaces=False,
                **own.special_tokens_map,
            )
            self.backbone.resize_token_embeddings(len(rows), mean_resizing=False)
            with torch.no_grad():
                self.rows.copy_(rows)
        self.__dict__.pop("tokenizer", None)  # it is made once, of the module that was there

    def add_network(self, hidden: int, seed: int) -> None:
        """Puts a network with `hidden` units behind the mean of a table that answers already; vectors stay as they are.

        Rows become twice as wide, `[r, r·Q]` with a random rotation Q, so that what the network learns of a word need
        not be what the mean needs of it. Of `2d + hidden` units `2d` carry the mean as it was, by
        `x = relu(x) − relu(−x)`, and the others begin with weights of zero behind them.
        """
        rows = self.rows.detach()
        dim = rows.shape[1]
        generator = torch.Generator().manual_seed(seed)
        turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
        first = Dense(2 * dim, 2 * dim + hidden, activation_function=nn.ReLU())
        second = Dense(2 * dim + hidden, dim, activation_function=nn.Identity())
        one, none = torch.eye(dim), torch.zeros(dim, dim)
        bound = (2 * dim) ** -0.5  # torch's own for a linear layer
        random = (2 * torch.rand(hidden, 2 * dim, generator=generator) - 1) * bound
        carry = torch.cat([torch.cat([one, none], dim=1), torch.cat([-one, none], dim=1)])
        with torch.no_grad():
            first.linear.weight.copy_(torch.cat([carry, random]))
            second.linear.weight.copy_(torch.cat([one, -one, torch.zeros(dim, hidden)], dim=1))
            first.linear.bias.zero_()
            second.linear.bias.zero_()
        self.set_rows(torch.cat([rows, rows @ turn], dim=1))
        self.model.insert(1, first)
        self.model.insert(2, second)
        self.model.eval()

    def set_rows(self, rows: Tensor) -> None:
        """Takes the rows of a table, float32 `[vocabulary_size, d]`."""
        self.model[0] = StaticEmbedding(self.first.tokenizer, embedding_weights=rows.contiguous())

    def set_head(self, head: Head) -> None:
        """Takes a fitted head; a table has it folded in: `mean(E)·W + b = mean(E·W + b)`."""
        with torch.no_grad():
            if self.is_table:
                self.set_rows(self.first.embedding.weight @ head.weight.T + head.bias)
            else:
                self.head.weight.copy_(head.weight)
                if self.head.bias is not None:
                    self.head.bias.copy_(head.bias)

    def save(self, folder: Path) -> None:
        """Writes the Sentence Transformers folder, readable by old and new releases and by other runtimes."""
        # Sentence Transformers writes a card of its own; ours comes with the report.
        self.model.save(str(folder), create_model_card=False)
        for weights in folder.rglob("*.safetensors"):
            weights.chmod((folder / "modules.json").stat().st_mode)  # safetensors lets only the owner read
        modules = json.loads((folder / "modules.json").read_text())
        for module in modules:
            module["type"] = MODULE_PATH + module["type"].rsplit(".", 1)[-1]
        (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")
        for config, keys in _CONFIGS.items():
            for path in folder.glob(config):
                written = json.loads(path.read_text())
                path.write_text(json.dumps(keys(written), indent=2) + "\n")
        if not self.is_table:
            _name_tokenizer(folder / "tokenizer_config.json")
            transformer: dict[str, Any] = {
                "max_seq_length": self.model.max_seq_length,
                "do_lower_case": False,
            }
            if hasattr(self.backbone, "pooler"):
                # The checkpoint has no pooler, and without this every load would draw a random one and warn of it.
                transformer["model_args"] = {"add_pooling_layer": False}
            (folder / "sentence_bert_config.json").write_text(json.dumps(transformer, indent=2) + "\n")


def _name_tokenizer(path: Path) -> None:
    """Names a tokenizer that is all in its `tokenizer.json` in the word that every release of Transformers knows."""
    config = json.loads(path.read_text())
    if config.get("tokenizer_class") == "TokenizersBackend":  # Transformers 5
        path.write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def computing_in(dtype: torch.dtype, features: Features) -> torch.autocast:
    """Inside, matrix products of a model that reads `features` are in `dtype`: bfloat16, or float32 as it is."""
    # Casts are not kept for reuse: a captured graph would go on reading the first step's.
    device = features["input_ids"].device.type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False)


def build_student(
    settings: Settings,
    teacher_folder: str | None,
    prompts: Mapping[Role, str],
    dim: int,
    *,
    normalise: bool,
    max_length: int | None,
    similarity: Literal["cosine", "dot"],
    seed: int,
) -> Student:
    """A student of `settings` that answers with `dim` dimensions: untrained, or the one of `settings.start`.

    `teacher_folder` stands in for `backbone = "teacher"`, None where there are no weights; `max_length` is the
    teacher's, in tokens, used where the settings name none. Raises `LeafError` for a backbone that cannot be loaded or
    has not the layers asked for, and for a `start` that is no student of this space.
    """
    if settings.start is not None:
        return _continue(settings.start, dim, normalise, settings.max_length)
    torch.manual_seed(seed)  # the head, and a fresh backbone's missing weights, start the same in every run
    if settings.backbone == "teacher" and teacher_folder is None:
        raise LeafError(
            "student.backbone = 'teacher' needs the teacher's weights, and there are only vectors of it; name a "
            "Transformers encoder"
        )
    folder = teacher_folder if settings.backbone == "teacher" else resolve_model(settings.backbone)
    assert folder is not None
    revision = None if settings.backbone == "teacher" else settings.revision
    loaded = load_sentence_transformer(folder, revision, "cpu")
    transformer: Any = loaded[0]
    if not isinstance(transformer, Transformer):
        raise LeafError(
            f"student.backbone '{settings.backbone}' is a {type(transformer).__name__}, not a Transformer; name a "
            "Transformers encoder"
        )
    limit = _shortest(settings.max_length or max_length, transformer.max_seq_length)
    if settings.layers == ():
        modules: list[nn.Module] = [_table(transformer, limit)]
    else:
        if settings.layers is not None:
            layers = settings.kept_layers(transformer.auto_model.config.num_hidden_layers)
            if layers is not None:
                pick_layers(transformer.auto_model, layers)
        if getattr(transformer.auto_model, "pooler", None) is not None:
            transformer.auto_model.pooler = None  # read by nobody, and 590k parameters in a BERT-base
        if limit is not None:  # None would not mean "no limit" to Sentence Transformers
            transformer.max_seq_length = limit
        width = transformer.get_embedding_dimension()
        modules = [
            transformer,
            Pooling(width, pooling_mode=settings.pooling),
            Dense(width, dim, bias=settings.bias, activation_function=nn.Identity()),
        ]
    if normalise:
        modules.append(Normalize())
    model = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name=similarity)
    return Student(model.eval(), prompts)


def _continue(start: str, dim: int, normalise: bool, max_length: int | None) -> Student:
    """The student in the folder `start` as it was saved, to be trained further."""
    model = load_sentence_transformer(resolve_model(start), None, "cpu")
    names = [type(module).__name__ for module in model]
    tail = ["Normalize"] if normalise else []
    stacks = (["Transformer", "Pooling", "Dense"], ["StaticEmbedding"], ["StaticEmbedding", "Dense", "Dense"])
    if names not in ([*stack, *tail] for stack in stacks):
        raise LeafError(
            f"student.start '{start}' is {' → '.join(names)}, and a student of this teacher is Transformer → Pooling → "
            f"Dense or StaticEmbedding{''.join(f' → {each}' for each in tail)}; give one that leaf made"
        )
    if model.get_embedding_dimension() != dim:
        raise LeafError(
            f"student.start '{start}' answers with {model.get_embedding_dimension()} dimensions and the teacher with "
            f"{dim}; give a student of this teacher"
        )
    if max_length is not None and names[0] == "Transformer":
        model.max_seq_length = _shortest(max_length, model.max_seq_length)
    prompts: dict[Role, str] = {role: model.prompts.get(role) or "" for role in ROLES}
    return Student(model.eval(), prompts)


def pick_layers(backbone: Any, layers: Sequence[int]) -> None:
    """Keeps only `layers` of a Transformers encoder, in the order given, and says so in its config."""
    config = backbone.config
    total = config.num_hidden_layers
    stacks = [
        (parent, name, child)
        for parent in backbone.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == total
    ]
    if len(stacks) != 1:
        raise LeafError(f"cannot find the layers of a {type(backbone).__name__}; leave student.layers out to keep all")
    parent, name, stack = stacks[0]
    setattr(parent, name, nn.ModuleList(stack[layer] for layer in layers))
    config.num_hidden_layers = len(layers)
    if isinstance(getattr(config, "layer_types", None), list):
        # ModernBERT and its kin say per layer whether attention is local; a picked layer keeps its own kind.
        config.layer_types = [config.layer_types[layer] for layer in layers]
    with torch.device("meta"):
        reloaded = type(backbone)(config).state_dict().keys()
    lost = next((key for key in backbone.state_dict() if key not in reloaded and "pooler" not in key), None)
    if lost is not None:
        # ModernBERT's layer 0 has no norm of its own, so any other layer in its place would lose one on loading.
        raise LeafError(
            f"student.layers = {list(layers)}: a {type(backbone).__name__} of this shape has no place for {lost}; "
            "let layer 0 come first"
        )


def _table(transformer: Any, max_length: int | None) -> StaticEmbedding:
    """The backbone's word embeddings as a lookup table, before any head is folded in."""
    tokenizer = transformer.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise LeafError("a lookup-table student (layers = []) needs a fast tokenizer; choose another backbone")
    weights = transformer.auto_model.get_input_embeddings().weight.detach().clone().float()
    table = StaticEmbedding(tokenizer, embedding_weights=weights)
    if max_length is None:
        table.tokenizer.no_truncation()
    else:
        # Saved inside tokenizer.json, so that every reader cuts where the student was trained to be cut.
        table.tokenizer.enable_truncation(max_length)
    return table


def _shortest(*lengths: int | float | None) -> int | None:
    known = [int(length) for length in lengths if length is not None and length < 1e9]
    return min(known) if known else None
