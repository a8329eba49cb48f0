"""The command line of the measurements that append to a log and print its table."""

import argparse
from collections.abc import Callable
from pathlib import Path


def options_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of --log, --table and --assets; the caller adds its own options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table of the log; measure nothing")
    parser.add_argument("--assets", type=Path)
    return parser


def command(
    parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], None], table: Callable[[Path], str]
) -> None:
    """Measure, or print the table of a log."""
    options = parser.parse_args()
    if options.table:
        print(table(options.log))
    elif options.assets is None:
        parser.error("--assets is needed to measure")
    else:
        measure(options)
