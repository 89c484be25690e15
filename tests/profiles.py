"""How many cases a property tries: ``dev`` at work, ``ci`` by default, ``thorough`` over night.

HYPOTHESIS_PROFILE chooses. ``of(dev, ci, thorough)`` is for tests that need another number
than the profile's own.
"""

import os

EXAMPLES = {"dev": 10, "ci": 50, "thorough": 1000}
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")


def of(dev: int, ci: int, thorough: int) -> int:
    """The number that belongs to the chosen profile."""
    return {"dev": dev, "ci": ci, "thorough": thorough}[PROFILE]
