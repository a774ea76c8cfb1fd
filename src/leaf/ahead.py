"""Work done a little ahead of the need for it, in a thread: reading, tokenising, gathering while something computes."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items in the same order, made up to `depth` of them early in a thread of their own.

    Give it something lazy: `ahead(map(make, things), 8)`. What goes wrong in the thread is raised here, in its turn.
    """
    made = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting: deque[Future[object]] = deque(thread.submit(next, made, _END) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(thread.submit(next, made, _END))
                yield item  # type: ignore[misc]  # everything but _END came from `items`
        finally:
            for future in waiting:
                future.cancel()
