"""HTML pages: `dladiff report`, `dladiff explain` and `dladiff preview`."""
