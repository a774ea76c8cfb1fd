"""Packed sequences: the texts of a batch end to end, `[T]` tokens, and nothing computed on padding.

At the paper's length mix (Table 1: mean 192 tokens, longest 512) a padded batch of 32 is mostly padding. Everything in
a Transformer but attention works token by token and does not care where a text ends. Attention has to know, and
Transformers lets one register a function for it, so the encoder's own code runs unchanged: no fork of BERT, and no
flash-attn package. On CUDA the function is torch's variable-length flash attention (bfloat16 only); on a CPU it is
written out below, one matrix product per run of texts of equal length. Neither has dropout.

    features = pack(ids, lengths, first_position(backbone))
    states = packed_states(backbone, features)        # [T, d']
    vectors = packed_mean(states, features)           # [n, d']

Which encoders can do this is not a list of names: `can_pack` tries it, against the padded path.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

#: The name under which Transformers finds our attention function.
ATTENTION = "leaf_packed"
#: Tokens of a batch as a model reads them: tensors, and facts about them that stay on the host.
Features = dict[str, Any]
#: (start, count, length) of consecutive texts of one length.
Runs: TypeAlias = Sequence[tuple[int, int, int]]
#: Largest difference of token states at which the packed path counts as equal to the padded one, both in float32.
PROBE_TOLERANCE = 1e-4


def pack(ids: NDArray[Any], lengths: NDArray[Any], first_position: int = 0) -> Features:
    """A batch as one packed row, from its token ids end to end, `[T]`, and the tokens of each text, `[n]`.

    `input_ids`, `position_ids` and `text_ids` (which text a token belongs to) are int64 `[T]`, `cu_seqlens` int32
    `[n + 1]`: text i is `cu_seqlens[i]:cu_seqlens[i + 1]`. `runs` are the (start, count, length) of consecutive texts
    of one length, and `max_length` the longest: sort the texts by length to have few runs.
    """
    lengths = lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    return {
        "input_ids": torch.from_numpy(ids.astype(np.int64)),
        "position_ids": torch.from_numpy(np.arange(len(ids)) - np.repeat(starts, lengths) + first_position),
        "text_ids": torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
        "cu_seqlens": torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
        "max_length": int(lengths.max()),
        "runs": _runs(lengths, starts),
    }


def pad(ids: NDArray[Any], lengths: NDArray[Any], pad_id: int) -> Features:
    """A batch as a padded rectangle: `input_ids` and `attention_mask`, int64 `[n, longest]`."""
    mask = np.arange(lengths.max()) < lengths[:, None]
    rectangle = np.full(mask.shape, pad_id, dtype=np.int64)
    rectangle[mask] = ids
    return {"input_ids": torch.from_numpy(rectangle), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


def token_batches(lengths: NDArray[Any], order: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Consecutive rows of `order` whose tokens stay within `budget`; a longer text is a batch of its own."""
    start, tokens = 0, 0
    for index, row in enumerate(order):
        if tokens and tokens + lengths[row] > budget:
            yield order[start:index]
            start, tokens = index, 0
        tokens += int(lengths[row])
    yield order[start:]


def is_packed(features: Features) -> bool:
    """Whether these features came from `pack`."""
    return "cu_seqlens" in features


def to_device(features: Features, device: str | torch.device) -> Features:
    """The features with their tensors on `device`; copies from pinned memory do not wait."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in features.items()
    }


def packed_states(backbone: Any, features: Features) -> Tensor:
    """Token states `[T, d']` of a packed batch by a Transformers encoder that `use_packed_attention` prepared."""
    output = backbone(
        input_ids=features["input_ids"][None],
        position_ids=features["position_ids"][None],
        cu_seqlens=features["cu_seqlens"],
        max_length=features["max_length"],
        runs=features["runs"],
    )
    states: Tensor = output.last_hidden_state[0]
    return states


def packed_mean(states: Tensor, features: Features) -> Tensor:
    """Mean token state of every text (MeanPool of Eq. 1), float32 `[n, d']`."""
    lengths = features["cu_seqlens"].diff()
    sums = states.new_zeros((len(lengths), states.shape[-1]), dtype=torch.float32)
    means: Tensor = sums.index_add(0, features["text_ids"], states.float()) / lengths[:, None]
    return means


def packed_first(states: Tensor, features: Features) -> Tensor:
    """State of every text's first token (CLS pooling, Fig. 8), float32 `[n, d']`."""
    return states.index_select(0, features["cu_seqlens"][:-1]).float()


def use_packed_attention(backbone: Any) -> None:
    """Switches an encoder's attention to the packed function. `backbone.set_attn_implementation("sdpa")` undoes it."""
    backbone.set_attn_implementation(ATTENTION)


def first_position(backbone: Any) -> int:
    """The position id of a text's first token: RoBERTa and its kin start after the padding id, others at 0."""
    for module in backbone.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            return int(module.padding_idx) + 1
    return 0


def can_pack(backbone: Any) -> bool:
    """Whether an encoder gives the same states packed as padded: measured in float32, on texts of unequal length.

    False for an encoder that does not ask the attention interface (MPNet adds a bias of its own, for one). The
    encoder is left on its padded attention.
    """
    settings = backbone.config
    if not getattr(backbone, "_supports_attention_backend", False):
        return False
    # Longer than a local attention window, where the encoder has one, or the probe would not see it.
    window = getattr(settings, "sliding_window", None) or 0
    limit = getattr(settings, "max_position_embeddings", 512) - first_position(backbone)
    lengths = np.array([3, 5, 5, min(limit, 2 * window + 16)])
    pad_id = getattr(settings, "pad_token_id", None) or 0
    vocabulary = np.setdiff1d(np.arange(settings.vocab_size), [pad_id])  # RoBERTa tells padding by its id
    ids = np.random.default_rng(0).choice(vocabulary, lengths.sum())
    was_training, device = backbone.training, next(backbone.parameters()).device
    backbone.eval().cpu()
    try:
        with torch.inference_mode():
            padded = pad(ids, lengths, pad_id)
            expected = backbone(**padded).last_hidden_state[padded["attention_mask"].bool()]
            use_packed_attention(backbone)
            states = packed_states(backbone, pack(ids, lengths, first_position(backbone)))
    except (TypeError, ValueError, RuntimeError, KeyError):
        return False  # an encoder that takes no position ids, or does not hand our facts on to its attention
    finally:
        backbone.set_attn_implementation("sdpa")
        backbone.train(was_training).to(device)
    return bool(torch.allclose(states, expected, atol=PROBE_TOLERANCE, rtol=PROBE_TOLERANCE))


def _runs(lengths: NDArray[np.int64], starts: NDArray[np.int64]) -> Runs:
    """(start, count, length) of every maximal run of consecutive texts of one length."""
    first = np.flatnonzero(np.diff(lengths, prepend=-1))
    counts = np.diff(first, append=len(lengths))
    return tuple(zip(starts[first].tolist(), counts.tolist(), lengths[first].tolist(), strict=True))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seqlens: Tensor,
    max_length: int,
    runs: Runs,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each text of a packed batch: q, k, v `[1, heads, T, d]` → `[1, T, heads, d]`."""
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))  # [T, heads, d]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Transformers counts the token itself into a window, as flash-attn's callers do.
    window = -1 if sliding_window is None else sliding_window - 1
    if query.is_cuda:
        return _varlen(query, key, value, cu_seqlens, max_length, scale, window)[None], None
    mixed: Tensor = _RunAttention.apply(query, key, value, runs, scale, window)  # type: ignore[no-untyped-call]
    return mixed[None], None


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, scale: float, window: int
) -> Tensor:
    # Imported here: the module is not in CPU-only releases of old, and is not needed there.
    from torch.nn.attention.varlen import varlen_attn

    # The two options are named only where they differ from the defaults: releases disagree on the rest.
    options: dict[str, Any] = {} if scale == query.shape[-1] ** -0.5 else {"scale": scale}
    if window >= 0:
        options["window_size"] = (window, window)
    dtype = query.dtype if query.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16
    mixed = varlen_attn(
        query.to(dtype), key.to(dtype), value.to(dtype), cu_seqlens, cu_seqlens, max_length, max_length, **options
    )
    assert isinstance(mixed, Tensor)
    return mixed.to(query.dtype)


class _RunAttention(torch.autograd.Function):
    """Softmax attention over runs of texts of equal length, forward and backward, on a CPU.

    Written out rather than left to autograd, which would pay for every run with zeros the size of the whole batch.
    The backward pass is the textbook's: with P = softmax(s Q Kᵀ) and O = P V, `dV = Pᵀ dO`,
    `dS = P ∘ (dO Vᵀ − rowsum(P ∘ dO Vᵀ))`, `dQ = s dS K`, `dK = s dSᵀ Q`.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: Runs, scale: float, window: int
    ) -> Tensor:  # fmt: skip
        mixed = torch.empty_like(query, memory_format=torch.contiguous_format)
        weights = []
        for run in runs:
            q, k, v = (_of_run(states, run) for states in (query, key, value))
            scores = torch.matmul(q, k.transpose(-1, -2)).mul_(scale)
            if 0 <= window < run[2] - 1:
                scores.masked_fill_(_outside(window, run[2]), -torch.inf)
            attention = torch.softmax(scores, dim=-1)
            _of_run(mixed, run).copy_(torch.matmul(attention, v))
            weights.append(attention)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(query, key, value, *weights)
            ctx.runs, ctx.scale = runs, scale
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *weights = ctx.saved_tensors
        (d_mixed,) = gradients
        d_query, d_key, d_value = (
            torch.empty_like(states, memory_format=torch.contiguous_format) for states in (query, key, value)
        )
        for run, attention in zip(ctx.runs, weights, strict=True):
            q, k, v, d_out = (_of_run(states, run) for states in (query, key, value, d_mixed))
            _of_run(d_value, run).copy_(torch.matmul(attention.transpose(-1, -2), d_out))
            d_attention = torch.matmul(d_out, v.transpose(-1, -2)).mul_(attention)
            d_scores = d_attention.sub_(attention * d_attention.sum(-1, keepdim=True)).mul_(ctx.scale)
            _of_run(d_query, run).copy_(torch.matmul(d_scores, k))
            _of_run(d_key, run).copy_(torch.matmul(d_scores.transpose(-1, -2), q))
        return d_query, d_key, d_value, None, None, None


def _of_run(states: Tensor, run: tuple[int, int, int]) -> Tensor:
    """A view of one run's texts, `[T, heads, d]` → `[count, heads, length, d]`."""
    start, count, length = run
    return states[start : start + count * length].view(count, length, *states.shape[1:]).transpose(1, 2)


def _outside(window: int, length: int) -> Tensor:
    positions = torch.arange(length)
    return (positions[:, None] - positions).abs() > window


def _no_mask(*_: Any, **__: Any) -> None:
    """Packed attention needs no mask: where texts begin and end is told to it directly."""


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
