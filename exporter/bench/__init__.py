"""Latency held against a reference, a bar or a baseline: `export-circuit bench` and its pytest fixture."""
