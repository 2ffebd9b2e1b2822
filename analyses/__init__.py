"""Asks a question of a run: scores, ablations, formation, figures, report, the command line."""
