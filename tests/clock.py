"""A clock that only moves when a test says so, in place of ``time.time``."""


class Clock:
    """Called, it gives ``now``, in seconds; a test sets that or adds to it."""

    def __init__(self, now: float = 1000.0):
        self.now = now

    def __call__(self) -> float:
        return self.now
