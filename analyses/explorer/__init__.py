"""The explorer: the page served from this machine, with attention computed from the real models when asked."""
