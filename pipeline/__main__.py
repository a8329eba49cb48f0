"""`python -m pipeline`: the same as the `dladiff` command."""

from pipeline.cli.main import main

main()
