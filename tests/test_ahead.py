import threading

import pytest

from leaf.ahead import ahead


def test_items_come_in_order_and_are_made_early_in_another_thread():
    made = []

    def make(number):
        made.append((number, threading.current_thread() is threading.main_thread()))
        return number * number

    items = ahead(map(make, range(100)), 3)
    assert next(items) == 0
    assert list(items) == [number * number for number in range(1, 100)]
    assert made == [(number, False) for number in range(100)]


def test_no_more_is_made_than_was_asked_for():
    made = []
    items = ahead(map(made.append, range(100)), 3)
    next(items)
    items.close()
    assert len(made) <= 4


def test_an_error_comes_where_its_item_would_have():
    items = ahead((1 // number for number in (1, 1, 0, 1)), 4)
    assert [next(items), next(items)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)
