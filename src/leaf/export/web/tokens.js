// Token ids of a question exactly as leaf makes them in Python, by Hugging Face's tokenizers in JavaScript.

import { Tokenizer } from "./runtime/tokenizers.js";

/**
 * @param {object} tokenizer the content of tokenizer.json
 * @param {object} config the content of tokenizer_config.json
 * @param {object} usage how the student reads: `prompt`, `max_length`, `add_special_tokens`, `split_special_tokens`
 * @returns {(question: string) => number[]}
 */
export function tokeniser(tokenizer, config, usage) {
  const full = new Tokenizer(tokenizer, config);
  const encode = (each, text, special) => each.encode(text, { add_special_tokens: special }).ids;
  // Without its special tokens a tokenizer takes "[SEP]" in a question apart like any other word.
  const added = tokenizer.added_tokens?.filter((each) => !each.special);
  const body = usage.split_special_tokens ? new Tokenizer({ ...tokenizer, added_tokens: added }, config) : full;
  // The library adds special tokens and cuts nothing, so what stands around a text is learnt from one. It is added
  // after cutting, else a long question would lose its last special token.
  const inner = encode(full, "a", false);
  const outer = usage.add_special_tokens ? encode(full, "a", true) : inner;
  const start = outer.findIndex((_, at) => inner.every((id, i) => outer[at + i] === id));
  const before = outer.slice(0, start);
  const after = outer.slice(start + inner.length);
  const room = (usage.max_length ?? Infinity) - before.length - after.length;
  const fromLeft = tokenizer.truncation?.direction === "Left";
  const lowers = lowercases(tokenizer.normalizer);
  return (question) => {
    const text = usage.prompt + question;
    // JavaScript lowers the last Σ of a word to ς; the tokenizers of Rust lower letter by letter, to σ.
    const ids = encode(body, lowers ? text.replaceAll("Σ", "σ") : text, false);
    const cut = ids.length <= room ? ids : fromLeft ? ids.slice(-room) : ids.slice(0, room);
    return [...before, ...cut, ...after];
  };
}

function lowercases(normalizer) {
  if (normalizer?.type === "Sequence") return normalizer.normalizers.some(lowercases);
  return normalizer?.type === "Lowercase" || (normalizer?.type === "BertNormalizer" && normalizer.lowercase);
}
