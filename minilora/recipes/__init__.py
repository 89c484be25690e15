"""How the shipped base, SmolLM2's folder and the data sets are made."""
