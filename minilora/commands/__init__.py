"""The command line: each command prints what it did and what comes next."""
