"""Bugs that LoRA code has had or invites, and what catches each (``minilora zoo``).

In reading order:

    bug.py         what an entry says
    file_bugs.py   of files for other programs
    merge_bugs.py  of merging and combining
    replay_bugs.py of replay
    soft_bugs.py   of soft prompts, prefixes and heads
    method_bugs.py of LoRA's cousins and rivals
    serving_bugs.py of many adapters at once
    tenant_bugs.py of keys, quotas and caches of many tenants
    job_bugs.py    of jobs that are killed
    traffic_bugs.py of experiments, failover and gateways
    gate_bugs.py   of the loop that adapts, and its gate
    scale_bugs.py  of several ranks, and of clients
    catalog.py     each bug as one wrong line of this package, with its story
    release.py     show a bug; let it loose for a moment

Imports ``text``; a bug's module is imported when the bug is let loose.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .bug import Bug
    from .catalog import BUGS
    from .release import describe, describe_all, find_bug

__all__ = ["BUGS", "Bug", "describe", "describe_all", "find_bug"]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
