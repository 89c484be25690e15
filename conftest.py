"""Which modules pytest does not import: those whose own library is an extra that is not here.

Every other module that cannot be imported fails the suite.
"""

from importlib.util import find_spec

NEEDS = {"minilora/scale/flower.py": "flwr"}  # make test-flower has it, in its own environment
collect_ignore = [module for module, library in NEEDS.items() if find_spec(library) is None]
