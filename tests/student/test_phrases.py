"""Phrases: what is found in which texts, and that every reader of the tokenizer reads them."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from tokenizers import BertWordPieceTokenizer, Tokenizer, models
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

import leaf
from leaf.errors import LeafError
from leaf.pipeline import Pipeline, _between_special
from leaf.recipe import Recipe, Student
from leaf.runtime.encoder import OnnxEncoder
from leaf.student.model import build_student
from leaf.student.phrases import Phrases, add_phrases, find_phrases
from tiny import sentences


def find(texts, size=10, count=10, least=2):
    ids = np.concatenate([np.array(text, dtype=np.uint16) for text in texts])
    return find_phrases(ids, np.array([len(text) for text in texts]), vocabulary_size=size, count=count, least=least)


def test_a_phrase_is_what_meets_oftener_than_chance():
    # 1 and 2 always meet; 3 meets everything, 4 among it, no oftener than chance has it.
    texts = [[1, 2, 3, 4], [3, 1, 2], [4, 3, 5], [6, 3, 1, 2], [5, 3, 7], [7, 3, 6]]
    found = find(texts, count=1)
    assert found.runs == ((1, 2),)
    assert found.counts[[1, 2, 10]].tolist() == [0, 0, 3]


def test_what_one_round_has_found_the_next_makes_longer():
    texts = [[1, 2, 3], [4, 1, 2, 3], [1, 2, 3, 5], [6, 7], [7, 6], [4, 8], [8, 5]]
    found = find(texts)
    assert (1, 2, 3) in found.runs
    whole = found.runs.index((1, 2, 3))
    assert found.counts[10 + whole] == 3
    assert found.counts.sum() == 3 + 2 + 8  # by hand: three phrases, 4 and 5 beside them, and the four pairs left apart
    assert found.shorter == pytest.approx(13 / 19)


def test_of_two_phrases_that_overlap_the_one_with_more_information_is_read():
    # 1 2 and 2 3 meet four times each. 1 is met five times and 3 four, so 2 3 says more; behind 1 it is read as well.
    texts = [[1, 2, 3], [1, 2, 3], [1, 2], [1, 2], [2, 3], [2, 3], [1], [9, 8], [8, 9], [9, 9], [8, 8]]
    found = find(texts, count=4)
    assert set(found.runs[:2]) == {(1, 2), (2, 3)}
    assert found.counts[10 + found.runs.index((1, 2))] == 2
    assert found.counts[10 + found.runs.index((2, 3))] + sum(
        found.counts[10 + row] for row, run in enumerate(found.runs) if run == (1, 2, 3)
    ) == 4  # fmt: skip


def test_nothing_is_joined_across_two_texts_and_rare_meetings_are_left_alone():
    assert find([[1], [2], [1], [2], [1], [2]]).runs == ()
    assert find([[1, 2], [1, 2], [3, 4]], least=2).runs == ((1, 2),)
    assert find([[1, 2], [1, 2], [3, 4]], least=3).runs == ()


def test_equal_texts_give_equal_phrases_and_never_more_than_asked_for():
    generator = np.random.default_rng(0)
    texts = [generator.zipf(1.5, 12).clip(max=9).tolist() for _ in range(500)]
    one, other = find(texts, count=7), find(texts, count=7)
    assert 0 < len(one.runs) <= 7
    assert one.runs == other.runs
    np.testing.assert_array_equal(one.counts, other.counts)
    assert len(set(one.runs)) == len(one.runs)


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hot", "dog", "##s", "the", ".", "'", "a", "(", ")", "s"]


@pytest.fixture
def wordpiece():
    return BertWordPieceTokenizer({token: row for row, token in enumerate(VOCABULARY)}, lowercase=True)._tokenizer


def with_phrases(tokenizer, *runs, shorter=1.0):
    counts = np.array([10] * tokenizer.get_vocab_size() + [5] * len(runs))
    ids = tuple(tuple(tokenizer.token_to_id(each) for each in run) for run in runs)
    return add_phrases(tokenizer, Phrases(ids, counts, shorter))


def test_tokens_keep_their_ids_and_phrases_follow_as_they_read(wordpiece):
    larger = with_phrases(wordpiece, ("hot", "dog"), ("hot", "dog", "##s"), ("'", "s"))
    assert [larger.decode([row]) for row in range(4, 17)] == [
        *("hot", "dog", "s", "the", ".", "'", "a", "(", ")", "s"),
        *("hot dog", "hot dogs", "' s"),
    ]
    read = larger.encode("The HOT  dog's (hot dogs). Dogs: hot", add_special_tokens=False)
    assert read.ids == [7, 14, 16, 11, 15, 12, 8, 5, 6, 1, 4]  # the colon is in no vocabulary
    for text in ("the dogs.", "a (hot) dog"):
        own, added = (each.encode(text, add_special_tokens=False).ids for each in (wordpiece, larger))
        assert added[:2] == own[:2]
        assert larger.encode(text).ids == [2, *added, 3]  # [CLS] and [SEP] stand where they stood
    assert larger.encode("", add_special_tokens=False).ids == []


#: BERT's own table of punctuation is Unicode 8's, ours the regular expressions': signs that are younger, and one that
#: was punctuation then, are cut by one of the two.
DISPUTED = "\u166d" + "".join(
    sign
    for sign in map(chr, range(0x110000))
    if unicodedata.category(sign).startswith("P") and len(BertPreTokenizer().pre_tokenize_str(f"a{sign}")) == 1
)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cn"), exclude_characters=DISPUTED), max_size=30))
@pytest.mark.parametrize("around", ["{}", "'{}", "({})", "a {}.", "漢{}…"])
def test_a_text_is_cut_into_words_and_signs_as_bert_cuts_it(around, text):
    text = around.format(text)
    tokenizer = BertWordPieceTokenizer({token: row for row, token in enumerate(VOCABULARY)}, lowercase=True)._tokenizer
    words = BertPreTokenizer().pre_tokenize_str(BertNormalizer(lowercase=True).normalize_str(text))
    expected = "".join("▁" + word for word, _ in words)
    assert with_phrases(tokenizer).normalizer.normalize_str(text) == expected


def test_a_text_is_cut_where_it_was_on_average(wordpiece):
    wordpiece.enable_truncation(10)
    assert with_phrases(wordpiece, ("hot", "dog"), shorter=0.62).truncation["max_length"] == 6


def test_another_kind_of_tokenizer_is_refused_in_one_line():
    with pytest.raises(LeafError, match=r"student\.phrases needs a WordPiece tokenizer .* is BPE behind None"):
        add_phrases(Tokenizer(models.BPE()), Phrases((), np.zeros(0, np.int64), 1.0))


def test_no_phrase_has_a_special_token_in_it_and_none_is_joined_across_one(wordpiece):
    # [CLS] hot dog [SEP], [CLS] the [UNK] [UNK] dog [SEP], [CLS] [SEP] and hot alone, as a table reads it
    ids, lengths = np.array([2, 4, 5, 3, 2, 7, 1, 1, 5, 3, 2, 3, 4]), np.array([4, 6, 2, 1])
    ids, lengths = _between_special(ids, lengths, wordpiece)
    assert (ids.tolist(), lengths.tolist()) == ([4, 5, 7, 5, 4], [2, 1, 1, 1])


@pytest.fixture
def recipe(tmp_path, teacher_folder):
    """Texts in which some pairs of words are met again and again; of two tables one may know them, and a layer may."""
    generator = np.random.default_rng(0)
    pairs = [" ".join(text.split()[:2]) for text in sentences(4, seed=7)]
    texts = [f"{pairs[generator.integers(4)]} {text}" for text in sentences(400)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    data = {
        "name": "phrases",
        "teacher": {"model": str(teacher_folder), "name": "tiny-teacher"},
        "students": [
            {"name": "student-plain", "layers": 0, "ridge_texts": 50},
            {"name": "student-table", "layers": 0, "ridge_texts": 50, "phrases": 8},
            {"name": "student-1l", "layers": [3], "ridge_texts": 50, "phrases": 8},
        ],
        "texts": [{"source": str(tmp_path / "texts.txt"), "kind": "query"}],
        "prepare": {"held_out": 50, "shard_rows": 100},
        "train": {"batch_size": 16, "cycles": 1, "epochs_per_cycle": 2, "lr": 3e-3},
        "export": {"precisions": ["fp32"]},
    }
    return Recipe.parse(data), pairs


def test_a_student_with_phrases_is_like_any_other(recipe, tmp_path, monkeypatch):
    settings, pairs = recipe
    out = tmp_path / "out"
    leaf.distill(settings, out, device="cpu")
    texts = [*pairs, f"{pairs[0]}, {pairs[1]}!", *sentences(20, seed=3)]
    for name in ("student-table", "student-1l"):
        larger, own = (Tokenizer.from_file(str(out / each / "tokenizer.json")) for each in (name, "student-plain"))
        assert 4 <= larger.get_vocab_size() - own.get_vocab_size() <= 8
        for pair in pairs:
            (only,) = larger.encode(pair, add_special_tokens=False).ids
            assert larger.decode([only]) == pair
        model = SentenceTransformer(str(out / name), device="cpu")
        assert len(next(model.parameters())) == larger.get_vocab_size()
        expected = model.encode(texts, prompt_name="query")
        np.testing.assert_allclose(OnnxEncoder(out / name).encode_query(texts), expected, atol=1e-5)
    # Transformers of old know no other name for a tokenizer that is its tokenizer.json.
    written = json.loads((out / "student-1l" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    # Elsewhere it says nothing, and a run that was made before there were phrases is the same run.
    asked_for = {
        each.name: json.loads((out / each.name / "manifest.json").read_text())["inputs"]["student"].get("phrases")
        for each in settings.students
    }
    assert asked_for == {"student-plain": None, "student-table": 8, "student-1l": 8}

    # A second start finds the phrases that the first looked for.
    again = Pipeline(settings, tmp_path / "again", device="cpu")
    again.texts()
    again.embed()
    looked = []
    monkeypatch.setattr("leaf.pipeline.find_phrases", lambda *a, **k: looked.append(a) or find_phrases(*a, **k))
    monkeypatch.setattr("leaf.pipeline.train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            again._train_student(settings.students[1])
    assert len(looked) == 1


def test_a_loss_on_the_teachers_inside_is_refused_for_tokens_that_the_teacher_has_not(recipe, tmp_path):
    settings, _ = recipe
    (layer,) = (each for each in settings.students if each.name == "student-1l")
    train = settings.train.model_copy(update={"loss": "leaf+distilbert"})
    with pytest.raises(LeafError, match=r"different tokens; take a backbone .* and no phrases"):
        leaf.distill(settings.model_copy(update={"students": (layer,), "train": train}), tmp_path / "out", device="cpu")


@pytest.mark.parametrize("layers", [0, 1])
def test_before_training_a_phrase_is_the_mean_of_its_pieces_and_no_other_text_moves(bert, layers):
    student = build_student(
        Student(layers=layers),
        str(bert),
        {"query": "", "document": ""},
        32,
        normalise=False,
        max_length=None,
        similarity="dot",
        seed=0,
    )
    one, other = sentences(2)
    before, rows = student.model.encode([one]), student.rows.detach().clone()
    phrase = tuple(student.tokenizer.rust.encode(other, add_special_tokens=False).ids)
    counts = np.ones(student.vocabulary_size + 1, dtype=np.int64)
    counts[-1] = 10**9
    student.set_tokenizer(add_phrases(student.tokenizer.rust, Phrases((phrase,), counts, 1.0)))
    read = student.tokenizer([other], "query").ids.tolist()
    assert read[len(read) // 2] == student.vocabulary_size - 1
    assert len(read) == (3 if layers else 1)  # between [CLS] and [SEP]
    np.testing.assert_allclose(student.rows.detach()[-1], rows[list(phrase)].mean(dim=0), atol=1e-6)
    np.testing.assert_allclose(student.model.encode([one]), before, atol=1e-6)
