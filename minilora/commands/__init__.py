"""The command line: each command prints what it did and what comes next.

``cli.py`` has the table of commands. A command ``minilora NAME`` is the module ``NAME.py``, with
two functions: ``add_options(parser)`` and ``run(options)``. It is imported when the command is
used.
"""
