"""Measures one model: heads, circuits, behaviour, ablations. Imports nothing of training but
`training.checkpoints.series`."""
