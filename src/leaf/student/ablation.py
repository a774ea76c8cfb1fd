"""What other distillation methods would add to Eq. 3 (App. B, Table 5, Fig. 10): MiniLM, TinyBERT and DistilBERT.

These losses look inside the teacher, so it runs along, on the student's token ids: both need one tokenizer and, but for
DistilBERT, equally many attention heads. They are here to be compared with (the paper finds that they hurt), so texts
are padded and nothing is compiled.

The paper writes each loss for one text of T tokens ("we disregard the batch dimension"). Here a loss is the mean over
the texts of a batch, each text counting once however long it is, as in Eq. 3; slices of a batch then add up to the
batch. Padding enters nothing: not the sums over tokens, not the softmax over keys.

Shapes: n texts, T tokens of the longest, A heads, C channels of a head; L layers and width d in the teacher (τ), L' and
d' in the student (σ). `mask` is bool `[n, T]`, true for real tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np
import torch
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor, nn

from leaf.errors import LeafError
from leaf.packed import Features, first_position, pad, to_device
from leaf.student.model import Student, computing_in

Method: TypeAlias = Literal["leaf+minilm", "leaf+tinybert", "leaf+distilbert"]
#: What two tokenizers of one vocabulary may still cut differently: case, accents, scripts, white space, punctuation.
PROBES = ("Plain words, 12.5 of them: don't UPPER.", "ÀÉÎ œuvre ﬁn İ", "漢字 कखग ру́сский", "  a\r\n\tb\u200bc ", "👩‍🚀")
#: Words of the vocabulary that they have to cut alike, too.
NUM_PROBES = 500
#: A score that no softmax sees. Not −∞, of which two make NaN in a divergence.
NEVER = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Internals:
    """What an encoder computes on the way, in float32."""

    states: tuple[Tensor, ...]
    """`h_0` (before the first layer) to `h_L`, each `[n, T, d]`."""
    queries: tuple[Tensor, ...]
    """`Q_1` to `Q_L`, each `[n, A, T, C]`; as `keys` and `values`, empty for an encoder that has them elsewhere."""
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


def value_relation(values: Tensor, mask: Tensor) -> Tensor:
    """`log VR`, where `VR = softmax(V·Vᵀ/√C)` (Eq. 4): `[n, A, T, T]`, of `V` `[n, A, T, C]`."""
    return _log_softmax(scores(values, values), mask)


def attention(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """`log Att`, where `Att = softmax(Q·Kᵀ/√C)` (Eq. 6): `[n, A, T, T]`, a row for each query.

    Eq. 6 prints `K·Qᵀ`, whose columns are the queries. The softmax is over the keys either way: that is "the attention
    matrix in the given transformer head", as the paper goes on.
    """
    return _log_softmax(scores(queries, keys), mask)


def scores(queries: Tensor, keys: Tensor) -> Tensor:
    """`Q·Kᵀ/√C`, the attention of Eq. 6 before its softmax, as Eq. 10 takes it: `[n, A, T, T]`."""
    return queries @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1])


def divergence(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """`1/(AT) Σ_t Σ_a KL(teacher ∥ student)` (Eq. 5 of value relations, Eq. 7 of attentions), of log-probabilities."""
    each = (teacher.exp() * (teacher - student)).sum(dim=-1)  # [n, A, T]
    return _mean_over_tokens(each.mean(dim=1), mask)


def minilm_loss(teacher: Internals, student: Internals, mask: Tensor) -> Tensor:
    """Eq. 8: value relations and attentions of the last layers."""
    relations = divergence(value_relation(teacher.values[-1], mask), value_relation(student.values[-1], mask), mask)
    attentions = divergence(
        attention(teacher.queries[-1], teacher.keys[-1], mask),
        attention(student.queries[-1], student.keys[-1], mask),
        mask,
    )
    return relations + attentions


def layer_map(num_teacher: int, num_student: int) -> list[int]:
    """`g(l) = ⌊L/L'⌋·l` for l from 1 to L': the teacher's layer for each of the student's.

    As printed under Eq. 9. Where L' does not divide L, `g(L')` is not the teacher's last layer. Printed too is the 1/L
    of Eq. 9 and 10, although their sums have L' terms.
    """
    return [num_teacher // num_student * layer for layer in range(1, num_student + 1)]


def hidden_loss(teacher: Internals, student: Internals, mask: Tensor, mapping: nn.Module) -> Tensor:
    """`1/(TL) Σ_t Σ_l MSE(h^τ_g(l), W^map h^σ_l)` (Eq. 9), the sum over the student's layers."""
    num_teacher, num_student = len(teacher.states) - 1, len(student.states) - 1
    errors = [
        (teacher.states[above] - mapping(student.states[layer])).square().mean(dim=-1)  # [n, T]
        for layer, above in enumerate(layer_map(num_teacher, num_student), start=1)
    ]
    return _mean_over_tokens(torch.stack(errors).sum(dim=0), mask) / num_teacher


def score_loss(teacher: Internals, student: Internals, mask: Tensor) -> Tensor:
    """`1/(AL) Σ_a Σ_l MSE(T×T scores before the softmax)` (Eq. 10), the sum over the student's layers."""
    num_teacher, num_student = len(teacher.queries), len(student.queries)
    total = mask.new_zeros((), dtype=torch.float32)
    for layer, above in enumerate(layer_map(num_teacher, num_student), start=1):
        ours = scores(student.queries[layer - 1], student.keys[layer - 1])
        theirs = scores(teacher.queries[above - 1], teacher.keys[above - 1])
        errors = (theirs - ours).square().mean(dim=1)  # [n, T, T]
        rows = torch.where(mask[:, None, :], errors, 0).sum(dim=-1) / mask.sum(dim=-1, keepdim=True)
        total = total + _mean_over_tokens(rows, mask)
    return total / num_teacher


def tinybert_loss(teacher: Internals, student: Internals, mask: Tensor, mapping: nn.Module) -> Tensor:
    """Eq. 11: hidden states and scores, layer by layer."""
    return hidden_loss(teacher, student, mask, mapping) + score_loss(teacher, student, mask)


def distilbert_loss(teacher: Internals, student: Internals, mask: Tensor, mapping: nn.Module) -> Tensor:
    """`−cos_sim(h^τ_L, W^map h^σ_L')` (Eq. 12), the mean over tokens: from −1 (same directions) to 1."""
    cosines = nn.functional.cosine_similarity(teacher.states[-1], mapping(student.states[-1]), dim=-1)
    return -_mean_over_tokens(cosines, mask)


def _log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask[:, None, None, :], NEVER).log_softmax(dim=-1)


def _mean_over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the real tokens of each text, `[n, T]` → `[n]`, then over texts."""
    return (torch.where(mask, values, 0).sum(dim=1) / mask.sum(dim=1)).mean()


class AddedLoss:
    """One of these losses between a student and its teacher, with the map that is trained along.

    `teacher` is a Sentence Transformers model, which stays as it is. Raises `LeafError` where the method cannot compare
    the two, and says why.
    """

    mapping: nn.Module
    """`W^map` (Eq. 9 and 12), d' → d without bias, drawn from `seed`; MiniLM has none. Trained, resumed, and in no
    student that is saved."""

    def __init__(self, method: Method, student: Student, teacher: Any, seed: int) -> None:
        self._method, self._student = method, student
        self._teacher = _comparable(method, student, teacher).eval()
        self.mapping = nn.Identity()
        if method != "leaf+minilm":
            ours, theirs = (_probe(encoder).states[-1].shape[-1] for encoder in (student.backbone, self._teacher))
            self.mapping = _mapping(ours, theirs, seed)

    def to(self, device: str) -> None:
        """Moves the teacher and the map to where the student is trained."""
        self._teacher.to(device)
        self.mapping.to(device)

    def __call__(self, features: Features, compute_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The student's vectors `[n, d]` of a padded batch, as `Student.forward` gives them, and the loss to be added.

        Both encoders compute in `compute_dtype`, so that equal ones have equal internals; the loss is float32.
        """
        mask = features["attention_mask"].bool()
        with computing_in(compute_dtype, features):
            ours = look_inside(self._student.backbone, features)
            with torch.no_grad():
                theirs = look_inside(self._teacher, features)
        return self._student.vectors_of(ours.states[-1], features), self._loss(theirs, ours, mask)

    def _loss(self, teacher: Internals, student: Internals, mask: Tensor) -> Tensor:
        if self._method == "leaf+minilm":
            return minilm_loss(teacher, student, mask)
        if self._method == "leaf+tinybert":
            return tinybert_loss(teacher, student, mask, self.mapping)
        return distilbert_loss(teacher, student, mask, self.mapping)


def look_inside(backbone: Any, features: Features) -> Internals:
    """Runs a Transformers encoder on a padded batch and keeps what it computes on the way."""
    kept: dict[str, list[Tensor]] = {"query": [], "key": [], "value": []}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, arguments, output: kept[name].append(output)

    hooks = [
        getattr(module, name).register_forward_hook(keep(name)) for module in self_attentions(backbone) for name in kept
    ]
    try:
        output = backbone(
            input_ids=features["input_ids"], attention_mask=features["attention_mask"], output_hidden_states=True
        )
    finally:
        for hook in hooks:
            hook.remove()

    def by_head(maps: list[Tensor]) -> tuple[Tensor, ...]:
        heads = backbone.config.num_attention_heads if maps else 0
        return tuple(each.float().view(*each.shape[:2], heads, -1).transpose(1, 2) for each in maps)

    states = tuple(each.float() for each in getattr(output, "hidden_states", None) or ())
    return Internals(states, *map(by_head, (kept["query"], kept["key"], kept["value"])))


def self_attentions(backbone: Any) -> list[Any]:
    """The self-attention modules of a BERT-like encoder by layer: those with linear maps `query`, `key` and `value`.

    Empty for an encoder that has not exactly one such module a layer.
    """
    found = [
        module
        for module in backbone.modules()
        if all(isinstance(getattr(module, name, None), nn.Linear) for name in ("query", "key", "value"))
    ]
    return found if len(found) == backbone.config.num_hidden_layers else []


def _comparable(method: Method, student: Student, teacher: Any) -> Any:
    """The teacher's encoder, once it is clear that `method` can compare the student's with it."""

    def refuse(reason: str) -> NoReturn:
        raise LeafError(f"train.loss = '{method}': {reason}, or set train.loss = 'leaf'")

    first = teacher[0] if isinstance(teacher, nn.Sequential) and len(teacher) else teacher
    if not isinstance(first, Transformer):
        refuse(f"the teacher is a {type(first).__name__} and shows no token states; take a Transformer")
    if student.is_table:
        refuse("the student is a lookup table and has no token states; give it layers")
    if not _same_tokens(student.first.tokenizer, first.tokenizer):
        refuse(
            "student and teacher cut texts into different tokens; take a backbone with the teacher's tokenizer, and no "
            "phrases"
        )
    encoder: Any = first.auto_model
    limit, longest = _positions(encoder), student.model.max_seq_length
    if limit is not None and longest is not None and longest > limit:
        refuse(
            f"the student reads {longest} tokens, the teacher has {limit} positions; set student.max_length = {limit}"
        )
    ours, theirs = _probe(student.backbone), _probe(encoder)
    if not ours.states or not theirs.states:
        refuse("an encoder does not tell the states of its layers; take a BERT-like one")
    if method == "leaf+distilbert":
        return encoder
    if not ours.queries or not theirs.queries:
        refuse("it needs self-attention with linear maps called query, key and value; take BERT-like encoders")
    heads, their_heads = ours.queries[0].shape[1], theirs.queries[0].shape[1]
    if heads != their_heads:
        refuse(f"the student has {heads} attention heads and the teacher {their_heads}; take a backbone with as many")
    layers, their_layers = len(ours.queries), len(theirs.queries)
    if method == "leaf+tinybert" and layers > their_layers:
        refuse(f"the student has {layers} layers and the teacher {their_layers}; keep fewer in student.layers")
    return encoder


def _same_tokens(one: Any, other: Any) -> bool:
    """Whether two tokenizers have one vocabulary, and cut some of it, also in capitals, and awkward texts alike."""
    if (vocabulary := one.get_vocab()) != other.get_vocab():
        return False
    some = sorted(vocabulary)[:: len(vocabulary) // NUM_PROBES + 1]
    probes = [*PROBES, *some, *(word.upper() for word in some)]
    return bool(one(probes, truncation=False)["input_ids"] == other(probes, truncation=False)["input_ids"])


def _positions(backbone: Any) -> int | None:
    """Tokens that an encoder has positions for; None where it does not say."""
    positions = getattr(backbone.config, "max_position_embeddings", None)
    return None if positions is None else int(positions) - first_position(backbone)


def _probe(backbone: Any) -> Internals:
    """What an encoder shows of itself, by two tokens."""
    device = next(backbone.parameters()).device
    with torch.no_grad():
        return look_inside(backbone, to_device(pad(np.ones(2, dtype=np.int64), np.array([2]), 0), device))


def _mapping(width: int, dim: int, seed: int) -> nn.Linear:
    mapping = nn.Linear(width, dim, bias=False, device="meta").to_empty(device="cpu")
    # torch's own start of a linear map, from a generator that shares nothing with the one of the head.
    nn.init.kaiming_uniform_(mapping.weight, a=math.sqrt(5), generator=torch.Generator().manual_seed(-1 - seed))
    return mapping
