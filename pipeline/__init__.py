"""The batch: rows in, rows out; the `dladiff` command. One row is one identity."""

from pipeline.storage.keys import redact_logs

redact_logs()  # here: actors, drivers and whoever imports one module of this package all come by
