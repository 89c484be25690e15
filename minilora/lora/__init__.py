"""The adapter: what it is to be, the layer, where it goes, how it is merged."""
