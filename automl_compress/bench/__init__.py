"""Benchmarks: what the parts buy and what they cost, measured on the user's own network."""
