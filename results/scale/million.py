"""A million texts through `leaf texts` and `leaf embed`, timed: writes results/scale/million.json.

    OMP_NUM_THREADS=1 python results/scale/million.py

Texts and teacher are made here, always the same: texts of 3 to 37 words (20 on average) with the frequencies of a
natural language, and a lookup table of 64 dimensions: what is timed is what surrounds a teacher, not the teacher.
Each stage is a process of its own; its memory is the most that was resident (`ru_maxrss`). The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from leaf.files import write_json
from leaf.progress import say
from leaf.provenance import provenance

NUM_TEXTS = 1_000_000
NUM_WORDS = 20_000
DIM = 64
OUT = Path(__file__).parent / "million.json"

RECIPE = """
name = "million"
[teacher]
model = "{teacher}"
batch_size = 256
[student]
backbone = "teacher"
layers = []
[[texts]]
source = "{texts}"
"""


def main() -> None:
    """Makes what is needed in a temporary folder, runs both stages and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=NUM_TEXTS, help="how many texts")
    parser.add_argument("--out", type=Path, default=OUT, help="where the record goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = vocabulary()
        write_texts(folder / "texts.jsonl", words, options.texts)
        save_teacher(folder / "teacher", words)
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE.format(teacher=folder / "teacher", texts=folder / "texts.jsonl"))
        stages = {verb: measured(verb, recipe, folder / "run") for verb in ("texts", "embed")}
        rows = json.loads((folder / "run" / "texts" / "manifest.json").read_text())["rows"]
    record = {
        "texts": options.texts,
        "training_texts": rows,
        "mean_words": 20,
        "dim": DIM,
        "cores": len(os.sched_getaffinity(0)),
        "stages": stages,
        "seconds": round(sum(each["seconds"] for each in stages.values()), 1),
        "peak_mib": max(each["peak_mib"] for each in stages.values()),
        "provenance": provenance(),
    }
    write_json(options.out, record)
    for verb, each in stages.items():
        rate = options.texts / each["seconds"]
        say(f"{verb}: {each['seconds']:.1f} s, {each['peak_mib']:,} MiB, {rate:,.0f} texts/s")
    print(json.dumps({key: record[key] for key in ("texts", "seconds", "peak_mib")}))


def vocabulary() -> list[str]:
    """Made-up words of two to four syllables, all different."""
    generator = np.random.default_rng(0)
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvz" for vowel in "aeiou"]
    found: dict[str, None] = {}
    while len(found) < NUM_WORDS:
        found["".join(generator.choice(syllables, generator.integers(2, 5)))] = None
    return list(found)


def write_texts(path: Path, words: list[str], count: int) -> None:
    """JSONL of texts and kinds; words follow Zipf's law."""
    generator = np.random.default_rng(1)
    weights = 1 / np.arange(1, len(words) + 1)
    with path.open("w", encoding="utf-8") as file:
        for first in range(0, count, 10_000):
            lengths = generator.integers(3, 38, min(10_000, count - first))
            drawn = iter(generator.choice(words, int(lengths.sum()), p=weights / weights.sum()).tolist())
            for number, length in enumerate(lengths.tolist(), first):
                text = " ".join(next(drawn) for _ in range(length)).capitalize() + "."
                file.write(json.dumps({"text": text, "kind": ("query", "document")[number % 2]}) + "\n")


def save_teacher(folder: Path, words: list[str]) -> None:
    """A Sentence Transformers model that is a vector a word, averaged."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace

    known = {word: number for number, word in enumerate(["[UNK]", ".", *words])}
    tokenizer = Tokenizer(WordLevel(known, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    weights = np.random.default_rng(2).standard_normal((len(known), DIM), dtype=np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
    model.save(str(folder), create_model_card=False)


def measured(verb: str, recipe: Path, out: Path) -> dict[str, Any]:
    """Runs one stage; its wall-clock seconds, seconds of CPU and peak memory."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "leaf", verb, str(recipe), "--out", str(out), "--device", "cpu"])
    _, status, used = os.wait4(process.pid, 0)  # of this child alone: RUSAGE_CHILDREN is the largest of all
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"leaf {verb} failed")
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": used.ru_maxrss // 1024,
    }


if __name__ == "__main__":
    main()
