"""The batch: rows in, rows out; the `dladiff` command. One row is one identity."""

from pipeline.names import redact_logs

redact_logs()  # here: actors, drivers and whoever imports one module of this package all come by
