"""Mutation search: larger networks bred from a small trained one, with inherited weights."""
