"""`python -m copyscope`: the `copyscope` command."""

from copyscope.analyses.cli import main

main()
