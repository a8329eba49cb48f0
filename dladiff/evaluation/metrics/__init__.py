"""Metrics of an evaluation: each file holds one record (`METRIC`), from which columns, tables and checks derive.

Nothing here imports torch: the driver makes columns and tables from stored rows.
"""

import importlib
import pkgutil

from dladiff.evaluation.metrics.record import Metric

_modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
_found = (vars(module)["METRIC"] for module in _modules if "METRIC" in vars(module))
METRICS: dict[str, Metric] = {metric.name: metric for metric in sorted(_found, key=lambda metric: metric.place)}
"""Name to record, in the order of columns."""


def in_table(table: str) -> list[Metric]:
    """Return the metrics that a kind of table shows."""
    return [metric for metric in METRICS.values() if table in metric.tables]
