"""The `dladiff` command: parse, call one function, return its exit code."""
