"""Which modules pytest does not import: those whose own library is an extra that is not here.

Every other module that cannot be imported fails the suite.
"""

from importlib.util import find_spec

NEEDS = {  # make test-flower has flwr, in its own environment
    "minilora/scale/flower.py": "flwr",
    "tests/scale/flower_wire.py": "flwr",
}
collect_ignore = [module for module, library in NEEDS.items() if find_spec(library) is None]
