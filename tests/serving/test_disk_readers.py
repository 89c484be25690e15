"""Readers take turns among tenants; one that hangs holds half of them."""

import threading
import time

import pytest

from minilora.serving.disk_readers import DiskReaders

from .live import eventually


def test_a_hundred_readings_of_one_cost_another_a_single_one():
    readers, order, go = DiskReaders(threads=1), [], threading.Event()
    readers.submit("max", lambda: go.wait(10))
    for number in range(100):
        readers.submit("max", lambda number=number: order.append(("max", number)))
    readers.submit("ann", lambda: order.append(("ann", 0)))
    go.set()
    readers.pool.shutdown()
    assert order.index(("ann", 0)) <= 1
    assert [each for each in order if each[0] == "max"] == [("max", n) for n in range(100)]


def test_who_hangs_holds_half_of_the_threads_and_all_is_read_in_the_end():
    readers, read, go = DiskReaders(threads=4), [], threading.Event()
    for number in range(8):
        readers.submit("max", lambda number=number: read.append(number) if go.wait(10) else None)
    done = threading.Event()
    readers.submit("ann", done.set)
    assert done.wait(5)
    assert not read
    go.set()
    readers.pool.shutdown()
    assert sorted(read) == list(range(8))


@pytest.mark.parametrize(("threads", "half"), [(1, 1), (2, 1), (3, 1), (4, 2), (6, 3)])
def test_half_of_the_threads_is_half_at_the_beginning_and_after_each_reading(threads, half):
    readers, began, hung = DiskReaders(threads), [], []
    for number in range(9):
        hung.append(threading.Event())
        readers.submit("max", lambda number=number: began.append(number) or hung[number].wait(10))
    for ended in range(9 - half):
        eventually(lambda ended=ended: len(began) == ended + half)
        time.sleep(0.002)
        assert len(began) == ended + half, "no more than half"
        if threads > 1:
            done = threading.Event()
            readers.submit("ann", done.set)
            assert done.wait(5)
        hung[ended].set()
    for each in hung:
        each.set()
    readers.pool.shutdown()
    assert began == list(range(9))
    assert not readers.busy
