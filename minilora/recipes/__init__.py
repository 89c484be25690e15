"""How the shipped base, SmolLM2's folder and the data sets are made.

In reading order:

    packages.py        files out of public packages, held to a checksum
    induction_head.py  induction heads written into a new model by hand, before pretraining
    pretrain.py        the shipped base: speeches and dialogues, about half an hour on two cores
    smollm2.py         SmolLM2-135M-Instruct, out of a package's GGUF file
    sentiment.py       MiniLM and sentences with labels, for docs/encoder.md
    audit_data.py      questions about licence texts, for an adapter of practical use

All but the first two are run as ``python -m minilora.recipes.NAME``. Imports the library.
"""
