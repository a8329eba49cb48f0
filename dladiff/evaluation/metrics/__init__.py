"""Metrics of an evaluation. Each file defines one record, `METRIC`; columns, tables and checks are built from them.

This package does not import torch, because the driver makes columns and tables from stored rows.
"""

import importlib
import pkgutil

from dladiff.evaluation.metrics.record import Metric

_modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
_records = (vars(module)["METRIC"] for module in _modules if "METRIC" in vars(module))
METRICS: dict[str, Metric] = {metric.name: metric for metric in sorted(_records, key=lambda metric: metric.order)}
"""Name to record, in the order of the columns."""


def in_table(table: str) -> list[Metric]:
    """Return the metrics of a kind of table (`Metric.tables`)."""
    return [metric for metric in METRICS.values() if table in metric.tables]
