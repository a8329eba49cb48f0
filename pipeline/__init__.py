"""The batch: rows in, rows out; the `dladiff` command. One row is one identity."""

from pipeline.storage.keys import redact_logs

redact_logs()  # here, so that it also runs in actors and drivers
