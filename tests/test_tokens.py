"""Every expectation is Sentence Transformers' own `preprocess`, unpadded by its attention mask or its offsets."""

import json

import numpy as np
import pytest
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding, Transformer
from transformers import BertTokenizerFast, ByT5Tokenizer

from leaf.errors import LeafError
from leaf.tokens import Tokenizer, Tokens
from tiny import sentences

PROMPTS = {"query": "ba be: ", "document": ""}
TEXTS = [*sentences(20), "", "[SEP] be [MASK]", "BÁ  do\n\tke", "ba " * 100, "漢字 ﬁ", "https://a.b/c.jpg"]


def new_module(folder, kind: str):
    transformer = Transformer(str(folder))
    if kind == "transformer":
        return transformer
    return StaticEmbedding(transformer.tokenizer, embedding_dim=4)


def by_sentence_transformers(module, texts, prompt: str) -> list[list[int]]:
    features = module.preprocess(list(texts), prompt=prompt or None)
    if "offsets" in features:
        return [part.tolist() for part in np.split(features["input_ids"].numpy(), features["offsets"].numpy()[1:])]
    return [
        ids[mask == 1].tolist() for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True)
    ]


def check(module, texts=TEXTS) -> Tokenizer:
    tokenizer = Tokenizer(module, PROMPTS)
    for role, prompt in PROMPTS.items():
        found = [ids.tolist() for ids in tokenizer(texts, role).split()]
        assert found == by_sentence_transformers(module, texts, prompt)
    return tokenizer


@pytest.mark.parametrize("kind", ["transformer", "table"])
def test_ids_are_those_of_sentence_transformers(bert, kind):
    tokenizer = check(new_module(bert, kind))
    assert tokenizer.is_direct
    assert [len(ids) for ids in tokenizer(TEXTS, "query").split()] == tokenizer(TEXTS, "query").lengths.tolist()
    assert tokenizer(TEXTS[:1], "query").ids.tolist() != tokenizer(TEXTS[:1], "document").ids.tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_cut_at_the_maximum_length_on_the_side_the_tokenizer_cuts(bert, side):
    module = new_module(bert, "transformer")
    module.max_seq_length = 5
    module.tokenizer.truncation_side = side
    tokenizer = check(module)
    assert tokenizer.is_direct
    assert (tokenizer.max_length, tokenizer(TEXTS, "document").lengths.max()) == (5, 5)


def test_a_table_is_cut_where_its_own_tokenizer_cuts(bert):
    table = new_module(bert, "table")
    table.tokenizer.enable_truncation(6)
    assert check(table).max_length == 6
    table.tokenizer.no_truncation()
    assert check(table).max_length is None


def test_special_tokens_written_in_a_text_follow_the_tokenizers_setting(bert):
    module = new_module(bert, "transformer")
    plain = check(module)
    module.tokenizer.split_special_tokens = True
    split = check(module)
    assert plain.is_direct
    assert split.is_direct
    assert split(["[SEP]"], "document").ids.tolist() != plain(["[SEP]"], "document").ids.tolist()
    assert split.identity() != plain.identity()


def test_the_models_own_tokenizer_is_left_as_it_was(bert):
    module = new_module(bert, "transformer")
    tokenizer = Tokenizer(module, PROMPTS)
    before = module.tokenizer.backend_tokenizer.to_str()
    module.max_seq_length = 9
    assert tokenizer(["ba " * 100], "document").lengths.tolist() == [48]  # the length it was made with
    assert module.tokenizer.backend_tokenizer.to_str() == before


class Shouting(BertTokenizerFast):
    """Does in Python what its Rust half knows nothing of."""

    def _encode_plus(self, text, *args, **kwargs):
        return super()._encode_plus([f"{each} ba" for each in text], *args, **kwargs)


def set_python_tokenizer(module, folder):
    module.processor = ByT5Tokenizer(model_max_length=30)


def set_overridden_tokenizer(module, folder):
    module.processor = Shouting.from_pretrained(str(folder))


def set_processing_kwargs(module, folder):
    module.processing_kwargs = {"text": {"max_length": 7}}


@pytest.mark.parametrize("change", [set_python_tokenizer, set_overridden_tokenizer, set_processing_kwargs])
def test_a_module_that_does_more_to_a_text_is_asked_itself(bert, change):
    module = new_module(bert, "transformer")
    before = Tokenizer(module, PROMPTS).identity()
    change(module, bert)
    tokenizer = check(module)
    assert not tokenizer.is_direct
    assert json.loads(json.dumps(tokenizer.identity())) == tokenizer.identity() != before


def test_the_identity_is_plain_json_that_using_the_model_does_not_change(bert):
    module = new_module(bert, "transformer")
    tokenizer = Tokenizer(module, PROMPTS)
    identity = tokenizer.identity()
    assert json.loads(json.dumps(identity)) == identity
    module.tokenizer(["ba be"], padding="max_length", max_length=11, truncation=True)
    assert tokenizer.identity() == Tokenizer(module, PROMPTS).identity() == identity
    assert identity == Tokenizer(new_module(bert, "transformer"), PROMPTS).identity()


def test_the_identity_tells_apart_whatever_changes_the_ids(bert, tmp_path):
    module = new_module(bert, "transformer")
    shorter = new_module(bert, "transformer")
    shorter.max_seq_length = 9
    retrained = new_module(bert, "transformer")
    retrained.tokenizer.add_tokens(["bado"])
    tokenizers = [
        Tokenizer(module, PROMPTS),
        Tokenizer(module, {"query": "do: "}),
        Tokenizer(shorter, PROMPTS),
        Tokenizer(retrained, PROMPTS),
        Tokenizer(new_module(bert, "table"), PROMPTS),
    ]
    assert len({json.dumps(tokenizer.identity()) for tokenizer in tokenizers}) == len(tokenizers)


def test_no_texts_are_no_tokens(bert):
    tokens = Tokenizer(new_module(bert, "transformer"), {})([], "query")
    assert (tokens.ids.tolist(), tokens.lengths.tolist(), tokens.split()) == ([], [], [])


def test_ids_lie_end_to_end_and_split_again():
    tokens = Tokens.join([[7, 8], [], [9]])
    assert (tokens.ids.tolist(), tokens.lengths.tolist()) == ([7, 8, 9], [2, 0, 1])
    assert [ids.tolist() for ids in tokens.split()] == [[7, 8], [], [9]]


def test_a_module_that_reads_no_texts_is_an_error():
    with pytest.raises(LeafError, match="cannot tokenise for a Normalize"):
        Tokenizer(Normalize(), PROMPTS)
