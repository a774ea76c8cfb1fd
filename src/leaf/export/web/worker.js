// Everything that takes time, off the page's thread: the student, the vectors of the documents, their texts.
//
//   in   {type: "search", id, question, k}   {type: "keep"}: load all texts, so that no network is needed any more
//   out  {type: "progress", loaded, total}, in bytes, until {type: "ready", manifest, seconds}
//        {type: "found", id, hits, encodeMs, searchMs}   {type: "kept", loaded, total}   {type: "failed", reason, keeping?}

import * as ort from "./runtime/ort.js";
import { prepare, rank } from "./rank.js";
import { tokeniser } from "./tokens.js";

/** A vector of this browser and Python's of the same text: int8 weights round differently, a broken student lands elsewhere. */
const LEAST_COSINE = 0.95;

let manifest;
const ready = load();
const chunks = new Map();

onmessage = async ({ data }) => {
  try {
    const { find } = await ready;
    if (data.type === "keep") await keep();
    else postMessage({ type: "found", id: data.id, ...(await find(data.question, data.k)) });
  } catch (error) {
    postMessage({ type: "failed", keeping: data.type === "keep", reason: error.message });
  }
};
// A message of its own: without it, a failure to load would be told only to the first question.
ready.catch((error) => postMessage({ type: "failed", reason: error.message }));

async function load() {
  const begin = performance.now();
  manifest = await (await answered("manifest.json", { cache: "no-cache" })).json();
  const { student, files } = manifest;
  const needed = ["runtime/ort-wasm.wasm", student.model, student.tokenizer, student.tokenizer_config, "vectors.i8"];
  const total = needed.reduce((sum, name) => sum + files[name].bytes, 0);
  let loaded = 0;
  const tell = (bytes) => postMessage({ type: "progress", loaded: (loaded += bytes), total });
  const [wasm, model, tokenizer, config, vectors] = await Promise.all(needed.map((name) => bytesOf(name, tell)));

  // Threads need two headers (COOP, COEP) that a plain file host does not send; one thread with SIMD works everywhere.
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { mjs: new URL("runtime/ort-wasm.js", import.meta.url).href };
  ort.env.wasm.wasmBinary = wasm;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const codes = new Int8Array(vectors.buffer);
  const json = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
  const tokenise = tokeniser(json(tokenizer), json(config), student);

  const encode = async (question) => {
    const ids = BigInt64Array.from(tokenise(question), BigInt);
    if (!ids.length) return new Float32Array(manifest.dim); // a lookup table has nothing to say of an empty text
    const shape = [1, ids.length];
    const feeds = {
      input_ids: new ort.Tensor("int64", ids, shape),
      attention_mask: new ort.Tensor("int64", new BigInt64Array(ids.length).fill(1n), shape),
    };
    const { sentence_embedding: found } = await session.run(feeds, ["sentence_embedding"]);
    return prepare(found.data, manifest.dim, manifest.normalise);
  };

  const find = async (question, k) => {
    const start = performance.now();
    const query = await encode(question);
    const encoded = performance.now();
    const best = rank(codes, query, k);
    const searched = performance.now();
    const hits = await Promise.all(
      best.map(async ({ row, score }) => ({ score: score * manifest.scale, ...(await documentOf(row)) })),
    );
    return { hits, encodeMs: encoded - start, searchMs: searched - encoded };
  };

  rank(codes, await check(tokenise, encode), 1); // once over everything: the first question finds compiled code
  postMessage({ type: "ready", manifest, seconds: (performance.now() - begin) / 1000 });
  return { find };
}

/** Throws unless this browser reads questions, and answers one, as Python did when the folder was written; that answer. */
async function check(tokenise, encode) {
  const { questions, ids, vector } = manifest.check;
  questions.forEach((question, i) => {
    if (String(tokenise(question)) !== String(ids[i]))
      throw new Error("this browser splits words differently from the student's tokenizer; try another browser");
  });
  const found = await encode(questions[0]);
  const dot = (a, b) => a.reduce((sum, each, i) => sum + each * b[i], 0);
  const cosine = dot(found, vector) / Math.sqrt(dot(found, found) * dot(vector, vector));
  if (!(cosine >= LEAST_COSINE))
    throw new Error(`the student does not answer here as it should (cosine ${cosine.toFixed(3)}); try another browser`);
  return found;
}

/** The document of a row: {id, title, text, metadata}. */
async function documentOf(row) {
  const { starts } = manifest.chunks;
  let low = 0, high = starts.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (starts[middle] <= row) low = middle;
    else high = middle - 1;
  }
  return (await chunk(low))[row - starts[low]];
}

/** Some documents that lie in one file, loaded once. */
function chunk(number) {
  if (!chunks.has(number)) {
    const name = manifest.chunks.name.replace("{}", String(number).padStart(4, "0"));
    const loading = bytesOf(name).then((bytes) => JSON.parse(new TextDecoder().decode(bytes)));
    loading.catch(() => chunks.delete(number)); // the next question tries again
    chunks.set(number, loading);
  }
  return chunks.get(number);
}

async function keep() {
  const total = manifest.chunks.starts.length;
  for (let number = 0; number < total; number++) {
    await chunk(number);
    if (number % 16 === 15 || number === total - 1) postMessage({ type: "kept", loaded: number + 1, total });
  }
}

/** A file of the folder, whole; `tell` hears of every piece. Its digest in the address keeps old copies apart. */
async function bytesOf(name, tell = () => {}) {
  const { bytes, sha256 } = manifest.files[name];
  const response = await answered(`${name}?${sha256.slice(0, 12)}`);
  const content = new Uint8Array(bytes);
  const reader = response.body.getReader();
  let at = 0;
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    if (at + piece.value.length <= bytes) content.set(piece.value, at);
    at += piece.value.length;
    tell(piece.value.length);
  }
  if (at !== bytes) throw new Error(`${name} has ${at} bytes, expected ${bytes}: upload the folder again, all of it`);
  return content;
}

async function answered(name, options) {
  let response;
  try {
    response = await fetch(new URL(name, import.meta.url), options);
  } catch {
    throw new Error(`${name.split("?")[0]} cannot be loaded: no connection`);
  }
  if (!response.ok) throw new Error(`${name.split("?")[0]} cannot be loaded (${response.status})`);
  return response;
}
