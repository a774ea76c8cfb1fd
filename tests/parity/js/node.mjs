// node node.mjs MODELS STUDENTS VECTORS: `encode.mjs` in node. MODELS holds the student folders, STUDENTS is the JSON it
// takes, and VECTORS the file that gets its answer.
import { readFileSync, writeFileSync } from "node:fs";
import * as transformers from "@huggingface/transformers";
import { encode } from "./encode.mjs";

const [models, students, vectors] = process.argv.slice(2);
transformers.env.localModelPath = models;
transformers.env.allowRemoteModels = false;
writeFileSync(vectors, JSON.stringify(await encode(transformers, JSON.parse(readFileSync(students, "utf8")))));
