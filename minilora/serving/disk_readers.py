"""Threads that read adapters from disk: tenants take turns, and none may have all the threads.

    submit(tenant, read) → the tenant's queue → a free thread takes the next tenant's turn

A tenant that asks for a hundred adapters on disk delays another, who asks for one, by a single
reading. A tenant whose folders hang, as on a disk that is gone, holds half of the threads at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from .fairness import DeficitRoundRobin

Job = Callable[[], None]
THREADS = 4


class DiskReaders:
    """``threads`` that begin when they are needed; a job must not raise.

    >>> readers, read = DiskReaders(), []
    >>> readers.submit("ann", lambda: read.append("naval"))
    >>> readers.pool.shutdown()
    >>> read
    ['naval']
    """

    def __init__(self, threads: int = THREADS):
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="adapter")
        self.most = max(1, threads // 2)
        self.turns: DeficitRoundRobin[tuple[str, Job]] = DeficitRoundRobin(quantum=1)
        self.busy: Counter[str] = Counter()  # threads of each tenant
        self.lock = Lock()

    def submit(self, tenant: str, job: Job) -> None:
        """Have something read, behind what this tenant waits for already."""
        with self.lock:
            self.turns.push(tenant, (tenant, job), cost=1)
        self.pool.submit(self.work)

    def work(self) -> None:
        """In a thread: what is next, as long as there is something that may begin."""
        while True:
            with self.lock:
                full = {tenant for tenant, threads in self.busy.items() if threads >= self.most}
                following = self.turns.pop(full)
                if following is None:
                    return  # the thread that makes room goes on with it
                tenant, job = following
                self.busy[tenant] += 1
            try:
                job()
            finally:
                with self.lock:
                    self.busy[tenant] -= 1
                    self.busy += Counter()  # forgets who has none
