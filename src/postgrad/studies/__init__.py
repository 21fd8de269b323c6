"""Runs of several arms and seeds: base, methods and controls, measured alike."""
