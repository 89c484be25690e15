"""How the shipped base, SmolLM2's folder and the data sets are made.

    pretrain.py    the shipped base: speeches and dialogues, about half an hour on two cores
    smollm2.py     SmolLM2-135M-Instruct, out of a package's GGUF file
    audit_data.py  questions about licence texts, for an adapter of practical use

Each is run as ``python -m minilora.recipes.NAME``. Imports the library.
"""
