"""Measures one model: heads, circuits, behaviour, ablations."""
