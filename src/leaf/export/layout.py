"""The small files around an ONNX student that Transformers.js, fastembed and their kin insist on, and in their words.

A Transformer student has nearly all of them from Sentence Transformers; a lookup table has only its tokenizer.
"""

import json
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from leaf.files import write_json, write_text
from leaf.runtime.artifact import TOKENIZER, Usage

#: What other runtimes take for a limit that no text reaches; without one, fastembed refuses the folder.
NO_LIMIT = 1_000_000
#: Settings of a tokenizer's last call that Transformers saves with it. fastembed cuts texts at such a `max_length`.
LEFT_OVER = ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "is_local", "local_files_only")
SPECIAL = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token", "bos_token", "eos_token")


def write_layout(folder: Path, model: SentenceTransformer, usage: Usage) -> None:
    """Writes tokenizer files and `config.json` into `folder`, or sets right those that are there."""
    first: Any = model[0]
    if isinstance(first, StaticEmbedding):
        _write_table(folder, first, usage)
    elif not (folder / TOKENIZER).is_file():
        first.tokenizer.save_pretrained(str(folder))
        first.auto_model.config.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    config = {key: value for key, value in config.items() if key not in LEFT_OVER}
    write_json(path, {**config, "model_max_length": usage.max_length or NO_LIMIT})
    # A token is a string or, in older files, a record of one. fastembed up to 0.7 needs the file.
    tokens = {key: config[key] for key in SPECIAL if config.get(key)}
    write_json(folder / "special_tokens_map.json", tokens)


def _write_table(folder: Path, table: StaticEmbedding, usage: Usage) -> None:
    tokenizer = json.loads(table.tokenizer.to_str())
    # A backbone's adds [CLS] and [SEP], which the table was trained without: only leaf and Sentence Transformers would
    # know not to ask for them.
    tokenizer["post_processor"] = None
    write_text(folder / TOKENIZER, json.dumps(tokenizer, ensure_ascii=False))
    by_id = {each["id"]: each["content"] for each in tokenizer["added_tokens"] if each["special"]}
    known = {f"[{key.removesuffix('_token').upper()}]": key for key in SPECIAL}
    special = {known[content]: content for content in by_id.values() if content in known}
    special["pad_token"] = table.tokenizer.id_to_token(usage.pad_token_id)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "padding_side": "right",
            "truncation_side": "right",
            "clean_up_tokenization_spaces": False,
        },
    )
    write_json(
        folder / "config.json",
        {
            # A type that nobody knows: Transformers.js then takes the graph as it is, and Transformers, which would
            # fill a known one with random weights, refuses.
            "model_type": "static-embedding",
            "architectures": ["PreTrainedModel"],
            "vocab_size": table.embedding.num_embeddings,
            "hidden_size": usage.dim,
            "pad_token_id": usage.pad_token_id,
        },
    )
