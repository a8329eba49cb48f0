"""The batch: rows in, rows out; the `dladiff` command. One row is one identity."""
