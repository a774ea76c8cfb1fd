"""Phrases: runs of word pieces that belong together become tokens, with rows of their own.

    phrases = find_phrases(ids, lengths, vocabulary_size=30_522, count=30_000)
    tokenizer = add_phrases(tokenizer, phrases)

A table answers with the mean of its rows, and a mean cannot say that a hot dog is no dog. As one token a phrase can be
given any vector, and its row begins with the teacher's, who has read it as a whole. A Transformer puts together what
stands apart by itself: it computes less where a text has fewer tokens, but has to learn every phrase anew. What phrases
take is memory, texts enough to meet every one, and some microseconds a query to find the phrases in it (results/phrases
has the numbers).

Phrases are found as byte-pair encoding finds its merges (Sennrich, Haddow and Birch, 2016, https://arxiv.org/abs/1508.07909),
across words too, and many at a time; what counts is not how often two tokens meet but how much oftener than chance.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers

from leaf.errors import LeafError
from leaf.progress import progress

#: The share of all phrases that may be found by the end of each round; what one has found, the next may make longer.
ROUNDS = (0.5, 0.8, 1.0)
#: A phrase is met so often at least. Fewer meetings teach a row little that its pieces do not say.
LEAST = 20
#: Stands for a space, as in SentencePiece: words and what is between them are one string to a Unigram model.
SPACE = "\u2581"
#: What BERT's tokenizers set apart: ASCII's punctuation and signs, and Unicode's punctuation.
PUNCTUATION = r"[!-/:-@\[-`{-~\p{P}]"


@dataclass(frozen=True)
class Phrases:
    """Runs of tokens, and how often every token is met once they are read as one."""

    runs: tuple[tuple[int, ...], ...]
    """Ids of the tokens of each phrase. No two are equal."""
    counts: NDArray[np.int64]
    """Meetings of the tokens that were there before, then of the phrases, `[vocabulary_size + len(runs)]`."""
    shorter: float
    """Tokens with phrases for each token without."""


def find_phrases(
    ids: NDArray[Any], lengths: NDArray[Any], *, vocabulary_size: int, count: int, least: int = LEAST
) -> Phrases:
    """At most `count` phrases of texts whose token ids lie end to end in `ids`, `lengths[i]` of them in text i.

    A round takes the pairs of neighbours with the greatest `n · log(n·N / (n₁·n₂))`: how often they meet, times their
    pointwise mutual information (Church and Hanks, 1990), where n₁ and n₂ are the meetings of each and N is all tokens.
    Where two pairs overlap in a text, the one with more information is read. Equal texts give equal phrases.
    """
    tokens = _with_ends(ids, lengths)
    runs: list[tuple[int, ...]] = [(each,) for each in range(vocabulary_size)]
    with progress("looking for phrases", len(ROUNDS)) as bar:
        for share in ROUNDS:
            wanted = round(share * count) + vocabulary_size - len(runs)
            pairs, scores = _best_pairs(tokens, len(runs), wanted, least)
            made = np.arange(len(runs), len(runs) + len(pairs))
            runs.extend(runs[left] + runs[right] for left, right in pairs.tolist())
            tokens = _merge(tokens, pairs, scores, made)
            bar.advance(1)
    found: dict[tuple[int, ...], int] = {}
    met = np.bincount(tokens[tokens >= 0], minlength=len(runs))
    for run, times in zip(runs, met.tolist(), strict=True):  # a run may have been put together in two ways
        found[run] = found.get(run, 0) + times
    return Phrases(
        tuple(found)[vocabulary_size:],
        np.fromiter(found.values(), dtype=np.int64, count=len(found)),
        (len(tokens) - len(lengths)) / max(1, len(ids)),
    )


def add_phrases(tokenizer: Tokenizer, phrases: Phrases) -> Tokenizer:
    """The tokenizer with `phrases` behind its own tokens, whose ids stay: the most probable tokens of a whole text.

    It is a Unigram model (Kudo, 2018, https://arxiv.org/abs/1804.10959) over the same normalised text, so every
    reader of `tokenizer.json` can run it. Texts are cut where, on average, they were cut before. Raises `LeafError`
    where the tokenizer is not BERT's kind.
    """
    own = json.loads(tokenizer.to_str())
    model, splits = own["model"], (own["pre_tokenizer"] or {}).get("type")
    special = [each["content"] for each in own["added_tokens"]]
    if model["type"] != "WordPiece" or splits != "BertPreTokenizer":
        raise LeafError(
            f"student.phrases needs a WordPiece tokenizer as BERT's, and the backbone's is {model['type']} behind "
            f"{splits}; leave it out, or name another backbone"
        )
    prefix = model["continuing_subword_prefix"]

    def as_read(token: str) -> str:
        if token in special:
            return token
        return token.removeprefix(prefix) if token.startswith(prefix) else SPACE + token

    words = [as_read(str(tokenizer.id_to_token(each))) for each in range(len(phrases.counts) - len(phrases.runs))]
    words += ["".join(words[each] for each in run) for run in phrases.runs]
    scores = np.log(phrases.counts + 0.5) - np.log(phrases.counts.sum() + 0.5)
    larger = Tokenizer(
        models.Unigram(list(zip(words, scores.tolist(), strict=True)), unk_id=tokenizer.token_to_id(model["unk_token"]))
    )
    larger.normalizer = normalizers.Sequence(
        [
            *([tokenizer.normalizer] if tokenizer.normalizer else []),
            normalizers.Replace(Regex(rf"(?<=\S)(?={PUNCTUATION})|(?<={PUNCTUATION})(?=\S)"), " "),
            normalizers.Strip(),
            normalizers.Prepend(SPACE),
            normalizers.Replace(Regex(r"\s+"), SPACE),
        ]
    )
    larger.post_processor = tokenizer.post_processor  # a Transformer's special tokens, which keep their ids
    larger.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Strip(" ", 1, 0)])
    larger.add_special_tokens(special)
    if tokenizer.truncation is not None:
        larger.enable_truncation(max(1, round(tokenizer.truncation["max_length"] * phrases.shorter)))
    return larger


def _with_ends(ids: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int32]:
    """The ids with a −1 behind every text: nothing is joined across it."""
    tokens = np.full(len(ids) + len(lengths), -1, dtype=np.int32)
    tokens[np.arange(len(ids)) + np.repeat(np.arange(len(lengths)), lengths)] = ids
    return tokens


def _best_pairs(
    tokens: NDArray[np.int32], size: int, count: int, least: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The best pairs, `[≤ count, 2]` in ascending order, and their pointwise mutual information."""
    met = np.bincount(tokens[tokens >= 0], minlength=size).astype(np.float64)
    left, right = tokens[:-1].astype(np.int64), tokens[1:]
    codes, times = np.unique((left * size + right)[(left >= 0) & (right >= 0)], return_counts=True)
    codes, times = codes[times >= least], times[times >= least]
    information = np.log(times * met.sum() / (met[codes // size] * met[codes % size]))
    best = np.argsort(-times * information, kind="stable")[:count]
    best = np.sort(best[information[best] > 0])
    return np.stack([codes[best] // size, codes[best] % size], axis=1), information[best]


def _merge(
    tokens: NDArray[np.int32], pairs: NDArray[np.int64], scores: NDArray[np.float64], made: NDArray[np.int64]
) -> NDArray[np.int32]:
    """The tokens with every pair of `pairs` as the one token `made`, but for those that overlap a better one."""
    if not len(pairs):
        return tokens
    size = int(tokens.max()) + 1
    known = pairs[:, 0] * size + pairs[:, 1]
    left, right = tokens[:-1].astype(np.int64), tokens[1:]
    codes = left * size + right
    place = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    score = np.where((known[place] == codes) & (left >= 0) & (right >= 0), scores[place], -np.inf)
    before, after = np.append(-np.inf, score[:-1]), np.append(score[1:], -np.inf)
    begins = np.flatnonzero((score > -np.inf) & (score > before) & (score >= after))  # of equal ones the first
    merged = tokens.copy()
    merged[begins] = made[place[begins]]
    return np.delete(merged, begins + 1)
