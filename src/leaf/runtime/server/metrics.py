"""What `GET /metrics` tells Prometheus, in a registry of its own: two servers in one process do not mix."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

#: Seconds: from one query on a lookup table (some 0.1 ms) to a request that is about to time out.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "leaf_requests", "Answered requests. 499: the client left.", ["endpoint", "status"], registry=registry
        )
        self.in_flight = Gauge("leaf_requests_in_flight", "Requests being answered.", registry=registry)
        self.texts = Counter("leaf_texts", "Encoded texts.", ["role"], registry=registry)
        self.tokens = Counter("leaf_tokens", "Encoded tokens, prompts included.", ["role"], registry=registry)
        self.waiting = Gauge("leaf_queue_texts", "Texts waiting for the encoder.", registry=registry)
        self.batch_texts = Histogram("leaf_batch_texts", "Texts in one batch.", buckets=TEXTS, registry=registry)
        self.queue_seconds = Histogram(
            "leaf_queue_seconds", "From a request's arrival to its first batch.", buckets=SECONDS, registry=registry
        )
        self.encode_seconds = Histogram(
            "leaf_encode_seconds", "One batch in the encoder.", buckets=SECONDS, registry=registry
        )

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
