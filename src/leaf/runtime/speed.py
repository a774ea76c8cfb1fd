"""How long a query takes: one text in, one vector out, tokenisation included (paper, App. G at batch size 1)."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from leaf.encoder import Encoder

#: Queries encoded before the clock runs: the first ones pay for allocation and code paths.
WARM_UP = 10


def query_latency(encoder: Encoder, queries: Sequence[str], num_queries: int = 100) -> dict[str, Any]:
    """Milliseconds from a query text to its vector, one query at a time: median, 10th and 90th percentile."""
    for query in queries[:WARM_UP]:
        encoder.encode_query([query])
    timed = []
    for index in range(num_queries):
        text = queries[index % len(queries)]
        began = time.perf_counter()
        encoder.encode_query([text])
        timed.append(1000 * (time.perf_counter() - began))
    deciles = statistics.quantiles(timed, n=10)
    return {
        "encoder": encoder.name,
        "what": "one query, tokenisation included",
        "median_ms": statistics.median(timed),
        "p10_ms": deciles[0],
        "p90_ms": deciles[-1],
        "num_queries": num_queries,
    }
