"""Runs `python -m pipeline` on a cluster if its dladiff has the version of the client that submitted the job.

    python same_version.py VERSION ARGUMENTS...

The client sends this file with the job and runs it as a script, so that it also works beside another version.
Exit code 2 and one line for another version or none.
"""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

STARTED = "dladiff starts: "
"""Begin of the line that says that the versions are the same."""
REFUSED = "error: this cluster has "
"""Begin of the line that says that they are not."""


def refusal(wanted: str) -> str | None:
    """Return the line for a version that is not the wanted one; None where it is."""
    try:
        have = version("dladiff")
    except PackageNotFoundError:
        where = f"no dladiff in the Python of its head ({sys.executable}), and the job was submitted by {wanted}"
        return f"{REFUSED}{where}: install dladiff {wanted} on every node"
    if have == wanted:
        return None
    where = f"dladiff {have} in the Python of its head ({sys.executable}), and the job was submitted by {wanted}"
    return f"{REFUSED}{where}: install {wanted} on every node, or submit with dladiff {have}"


def main() -> None:
    """Check the version, then become the command."""
    wanted, *arguments = sys.argv[1:]
    if line := refusal(wanted):
        print(line, flush=True)
        sys.exit(2)
    print(f"{STARTED}{wanted}, Python {platform.python_version()} ({sys.executable})", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "pipeline", *arguments])


if __name__ == "__main__":
    main()
