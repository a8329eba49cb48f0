"""HTML pages: `dladiff report` and `dladiff explain`."""
