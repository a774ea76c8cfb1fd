"""Packed equals padded, for every family of encoders that asks Transformers' attention interface."""

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from leaf.packed import (
    _varlen,
    can_pack,
    first_position,
    pack,
    packed_first,
    packed_mean,
    packed_states,
    pad,
    to_device,
    token_batches,
    use_packed_attention,
)

SMALL = {
    "vocab_size": 100,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 70,
    "pad_token_id": 1,
}
ENCODERS = {
    "bert": lambda: BertModel(BertConfig(**SMALL), add_pooling_layer=False),
    "roberta": lambda: RobertaModel(RobertaConfig(**SMALL), add_pooling_layer=False),
    "xlm-roberta": lambda: XLMRobertaModel(XLMRobertaConfig(**SMALL), add_pooling_layer=False),
    "modernbert": lambda: ModernBertModel(
        # Layer 0 attends to all, layer 1 to 8 tokens around each: shorter than the longest text below.
        ModernBertConfig(**SMALL, local_attention=16, global_attn_every_n_layers=2, cls_token_id=2, sep_token_id=3)
    ),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(
            vocab_size=100, dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=70, pad_token_id=1
        )
    ),
}


@pytest.fixture(params=ENCODERS)
def encoder(request):
    torch.manual_seed(0)
    return ENCODERS[request.param]().eval()


def texts(*lengths):
    """(token ids end to end, tokens of each text)."""
    return np.random.default_rng(1).integers(2, 100, sum(lengths)).astype(np.uint16), np.array(lengths)


def padded_states(encoder, batch):
    """The reference: Transformers' own padded path with its own (sdpa) attention."""
    encoder.set_attn_implementation("sdpa")
    features = pad(*batch, pad_id=1)
    return encoder(**features).last_hidden_state[features["attention_mask"].bool()]


def alone_states(encoder, batch):
    """The reference that knows no batch at all: every text by itself, eager attention."""
    encoder.set_attn_implementation("eager")
    ids, lengths = batch
    alone = np.split(ids.astype(np.int64), np.cumsum(lengths)[:-1])
    return torch.cat([encoder(input_ids=torch.from_numpy(each)[None]).last_hidden_state[0] for each in alone])


def run_packed(encoder, batch):
    use_packed_attention(encoder)
    return packed_states(encoder, pack(*batch, first_position(encoder)))


@pytest.mark.parametrize("reference", [padded_states, alone_states])
def test_packed_states_are_those_of_the_padded_path_and_of_each_text_alone(encoder, reference):
    batch = texts(5, 1, 40, 5, 5, 17)
    with torch.no_grad():
        torch.testing.assert_close(run_packed(encoder, batch), reference(encoder, batch), atol=1e-6, rtol=1e-5)


def test_packed_gradients_are_those_of_the_padded_path(encoder):
    batch = texts(6, 6, 33, 2)
    weights = torch.randn(47, 24, generator=torch.Generator().manual_seed(2))
    gradients = []
    for run in (padded_states, run_packed):
        encoder.zero_grad()
        (run(encoder, batch) * weights).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters()])
    for padded, packed in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, padded, atol=2e-5, rtol=1e-4)


def test_what_a_text_becomes_does_not_depend_on_its_neighbours(encoder):
    ids, lengths = texts(9, 3, 30)
    with torch.no_grad():
        together = run_packed(encoder, (ids, lengths))[:9]
        replaced = run_packed(encoder, (np.where(np.arange(42) < 9, ids, 7), lengths))[:9]
    assert torch.equal(together, replaced)


def test_the_attention_backward_pass_is_right_by_finite_differences():
    from leaf.packed import _RunAttention

    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(11, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(3)]
    runs = ((0, 2, 3), (6, 1, 5))
    for window in (-1, 1):
        assert torch.autograd.gradcheck(lambda q, k, v, w=window: _RunAttention.apply(q, k, v, runs, 0.5, w), states)


def test_a_pack_says_where_every_text_is():
    features = pack(*texts(2, 2, 4, 1), first_position=2)
    assert features["cu_seqlens"].tolist() == [0, 2, 4, 8, 9]
    assert features["text_ids"].tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 3]
    assert features["position_ids"].tolist() == [2, 3, 2, 3, 2, 3, 4, 5, 2]
    assert features["runs"] == ((0, 2, 2), (4, 1, 4), (8, 1, 1))
    assert features["max_length"] == 4


def test_batches_stay_within_the_budget_and_a_longer_text_is_alone():
    lengths = np.array([9, 4, 3, 3, 2])
    batches = [each.tolist() for each in token_batches(lengths, np.arange(5), 6)]
    assert batches == [[0], [1], [2, 3], [4]]


def test_means_and_first_states_by_hand():
    features = pack(*texts(2, 1))
    states = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]])
    assert packed_mean(states, features).tolist() == [[2.0, 4.0], [5.0, 5.0]]
    assert packed_first(states, features).tolist() == [[1.0, 2.0], [5.0, 5.0]]


def test_positions_start_where_the_encoder_counts_from():
    assert first_position(ENCODERS["bert"]()) == 0
    assert first_position(ENCODERS["roberta"]()) == 2  # padding id 1, and the first text token after it


def test_the_probe_accepts_these_encoders_and_leaves_them_padded(encoder):
    assert can_pack(encoder)
    assert encoder.config._attn_implementation == "sdpa"


def test_the_probe_refuses_an_encoder_with_attention_of_its_own():
    settings = {key: value for key, value in SMALL.items() if key != "pad_token_id"}
    assert not can_pack(MPNetModel(MPNetConfig(**settings), add_pooling_layer=False))


def test_the_probe_refuses_an_encoder_that_ignores_positions():
    class Deaf(BertModel):
        """Numbers positions through the pack, as an encoder without `position_ids` would."""

        def forward(self, position_ids=None, **features):
            return super().forward(**features)

    torch.manual_seed(0)
    assert not can_pack(Deaf(BertConfig(**SMALL), add_pooling_layer=False).eval())


@pytest.mark.parametrize("window", [-1, 8])
def test_the_attention_of_a_gpu_takes_our_arguments_forward_and_backward(window):
    """On the meta device, which computes shapes and dtypes alone: no GPU is needed to find a wrong call."""
    states = [torch.empty(28, 3, 8, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    bounds = torch.empty(4, device="meta", dtype=torch.int32)
    mixed = _varlen(*states, bounds, 20, 8**-0.5, window)
    assert (mixed.shape, mixed.dtype) == (states[0].shape, torch.bfloat16)
    mixed.sum().backward()
    assert all(each.grad.shape == each.shape for each in states)
    assert _varlen(*(each.float() for each in states), bounds, 20, 0.5, window).dtype == torch.float32


@pytest.mark.gpu
def test_on_a_gpu_packed_bfloat16_states_are_near_the_padded_float32_ones(encoder):
    batch = texts(6, 6, 33, 2)
    with torch.no_grad():
        expected = padded_states(encoder, batch)
        encoder.cuda()
        use_packed_attention(encoder)
        features = to_device(pack(*batch, first_position(encoder)), "cuda")
        with torch.autocast("cuda", torch.bfloat16):
            states = packed_states(encoder, features)
    assert torch.nn.functional.cosine_similarity(states.float().cpu(), expected).min() > 0.999
