// Vectors of texts as a user of Transformers.js makes them; the same code runs in node and in a browser.

/**
 * Each text through `AutoModel` (its output `sentence_embedding`) and through the pipeline, which pools the token
 * states by itself. Texts come with their prompt.
 *
 * @param transformers the module @huggingface/transformers
 * @param {Record<string, {texts: string[], normalise: boolean, precisions: string[]}>} students by name of their folder
 * @returns {Promise<Record<string, Record<string, {model: number[][], pipeline: number[][]} | {error: string}>>>} by
 *   student and precision
 */
export async function encode(transformers, students) {
  const found = {};
  for (const [name, { precisions, ...job }] of Object.entries(students)) {
    found[name] = {};
    for (const dtype of precisions) {
      found[name][dtype] = await bothWays(transformers, name, dtype, job).catch((error) => ({ error: String(error) }));
    }
  }
  return found;
}

async function bothWays({ AutoModel, AutoTokenizer, pipeline }, name, dtype, { texts, normalise }) {
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const model = await AutoModel.from_pretrained(name, { dtype });
  const extractor = await pipeline("feature-extraction", name, { dtype });
  const found = { model: [], pipeline: [] };
  for (let start = 0; start < texts.length; start += 8) {
    const batch = texts.slice(start, start + 8);
    const { sentence_embedding } = await model(tokenizer(batch, { padding: true, truncation: true }));
    found.model.push(...sentence_embedding.tolist());
    found.pipeline.push(...(await extractor(batch, { pooling: "mean", normalize: normalise })).tolist());
  }
  return found;
}
