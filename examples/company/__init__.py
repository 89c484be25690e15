"""One company, three departments, one base: ``python -m examples.company`` tells the story."""
