"""Work ahead in threads, in order and bounded: what keeps a GPU from waiting for a CPU, and a CPU for a disk.

PIL, torch, zlib and file systems let other threads run while they work, so threads are enough.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """``items``, computed in a thread up to ``depth`` ahead of who takes them.

    An exception of ``items`` comes out where it stands in the order. Left early, the thread ends.

    >>> list(ahead(range(5)))
    [0, 1, 2, 3, 4]
    """
    ready: queue.Queue = queue.Queue(max(depth, 1))
    left = threading.Event()

    def put(value) -> bool:
        while not left.is_set():
            try:
                ready.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:
            put((_END, error))

    thread = threading.Thread(target=work, daemon=True, name="ahead")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        left.set()
        thread.join()


class Background:
    """Calls ``consume(items)`` in a thread; ``put`` feeds it, ``result`` ends the items and waits.

    A failure of ``consume`` comes out of the next ``put``, or of ``result``. ``cancel`` raises
    :class:`Cancelled` in it, to clean up.
    """

    def __init__(self, consume: Callable[[Iterator], Any], depth: int = 64):
        self._queue: queue.Queue = queue.Queue(depth)
        self._error: BaseException | None = None
        self._value: Any = None
        self._ended = False
        self._thread = threading.Thread(target=self._work, args=(consume,), daemon=True, name="writer")
        self._thread.start()

    def put(self, item) -> None:
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def result(self):
        self._queue.put(_END)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> None:
        self._queue.put(Cancelled)
        self._thread.join()

    def _work(self, consume) -> None:
        try:
            self._value = consume(self._items())
        except BaseException as error:
            self._error = error
            while not self._ended:  # never leave ``put`` waiting
                self._ended = self._queue.get() in (_END, Cancelled)

    def _items(self) -> Iterator:
        while True:
            item = self._queue.get()
            self._ended = item is _END or item is Cancelled
            if item is Cancelled:
                raise Cancelled
            if item is _END:
                return
            yield item


class Cancelled(Exception):
    """Whoever made the items failed: what was begun with them is given up."""
