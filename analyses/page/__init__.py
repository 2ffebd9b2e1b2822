"""One page about runs: as a file that opens offline, served by the explorer, or in a notebook."""
