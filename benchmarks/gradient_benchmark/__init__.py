"""The parts of `benchmarks/gradients.py`: GradNet's work on per-sample gradients, by postgrad and by its peers."""
