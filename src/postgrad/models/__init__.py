"""Networks by name, their weights on disk, and networks as classifiers."""
