"""The small files that Transformers.js and fastembed need, and that Sentence Transformers answers as it did without."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from leaf.export.layout import write_layout
from leaf.runtime.artifact import Usage
from tiny import sentences

TEXTS = [*sentences(8, seed=2), "ba [SEP] be", "", "kale " * 80]
NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def usage(name, **changes):
    facts = {
        "name": name, "precision": "fp32", "dim": 24, "normalised": True, "similarity": "cosine",
        "prompts": {"query": "ba be: ", "document": ""}, "max_length": 24, "add_special_tokens": name != "table",
        "split_special_tokens": False, "pad_token_id": 0, "space": None,
    }  # fmt: skip
    return Usage(**{**facts, **changes})


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.fixture(params=["student", "table"])
def folder(request, tmp_path):
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / request.param))


def test_sentence_transformers_answers_the_same_bit_for_bit(folder):
    before = SentenceTransformer(str(folder), device="cpu")
    expected = [before.encode_query(TEXTS), before.encode_document(TEXTS)]
    write_layout(folder, before, usage(folder.name))
    after = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_array_equal([after.encode_query(TEXTS), after.encode_document(TEXTS)], expected)
    assert np.abs(expected[0]).max() > 0
    # And once more over its own files, as every later export does.
    files = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    write_layout(folder, after, usage(folder.name))
    assert {path.name: path.read_bytes() for path in folder.glob("*.json")} == files


def test_what_a_tokenizer_saved_of_its_last_call_is_dropped(student, tmp_path):
    """fastembed cuts at `max_length`, whatever `model_max_length` says."""
    folder = Path(shutil.copytree(student, tmp_path / "student"))
    config = read(folder, "tokenizer_config.json")
    left_over = {"max_length": 7, "stride": 0, "truncation_strategy": "longest_first", "pad_to_multiple_of": None}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **left_over, "model_max_length": 512}))
    write_layout(folder, SentenceTransformer(str(folder), device="cpu"), usage("student"))
    found = read(folder, "tokenizer_config.json")
    assert not left_over.keys() & found.keys()
    assert found["model_max_length"] == 24
    assert read(folder, "special_tokens_map.json") == {key: config[key] for key in NAMES}
    assert read(folder, "config.json")["model_type"] == "bert"
    assert read(folder, "tokenizer.json")["post_processor"] is not None


def test_a_table_gets_the_files_that_only_transformers_have(table, tmp_path):
    folder = Path(shutil.copytree(table, tmp_path / "table"))
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    model = SentenceTransformer(str(folder), device="cpu")
    rows = model[0].embedding.num_embeddings
    write_layout(folder, model, usage("table"))
    assert read(folder, "config.json") == {
        "model_type": "static-embedding",
        "architectures": ["PreTrainedModel"],
        "vocab_size": rows,
        "hidden_size": 24,
        "pad_token_id": 0,
    }
    assert read(folder, "tokenizer_config.json") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **NAMES,
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 24,
    }
    assert read(folder, "special_tokens_map.json") == NAMES
    tokenizer = read(folder, "tokenizer.json")
    assert tokenizer["post_processor"] is None
    # A runtime that asks for special tokens, as most do, now gets the ids that the table was trained with.
    ids = model[0].tokenizer.encode(TEXTS[0], add_special_tokens=False).ids
    assert AutoTokenizer.from_pretrained(folder)(TEXTS[0])["input_ids"] == ids


def test_a_table_without_a_limit_says_a_whole_number_that_no_text_reaches(table, tmp_path):
    folder = Path(shutil.copytree(table, tmp_path / "table"))
    write_layout(folder, SentenceTransformer(str(folder), device="cpu"), usage("table", max_length=None))
    assert read(folder, "tokenizer_config.json")["model_max_length"] == 1_000_000


def test_transformers_refuses_a_table_rather_than_making_up_weights(table, tmp_path):
    folder = Path(shutil.copytree(table, tmp_path / "table"))
    write_layout(folder, SentenceTransformer(str(folder), device="cpu"), usage("table"))
    with pytest.raises(ValueError, match="static-embedding"):
        AutoModel.from_pretrained(folder)


def test_an_empty_folder_gets_a_transformers_tokenizer_and_config(student, tmp_path):
    """As `export_model` of a model that was never a student."""
    model = SentenceTransformer(str(student), device="cpu")
    write_layout(tmp_path, model, usage("student"))
    assert read(tmp_path, "config.json")["model_type"] == "bert"
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXTS[0])["input_ids"] == model[0].tokenizer(TEXTS[0])["input_ids"]
    assert read(tmp_path, "tokenizer_config.json")["model_max_length"] == 24
    assert read(tmp_path, "special_tokens_map.json")["pad_token"] == "[PAD]"
