"""Every metric has its own position and a column; one metric measures each stored entry."""

import subprocess
import sys
from collections import Counter

from dladiff.evaluation.metrics import METRICS
from pipeline.records.schema import RESULTS


def test_columns_have_one_order_and_each_entry_is_measured_once() -> None:
    orders = [metric.order for metric in METRICS.values()]
    assert orders == sorted(set(orders))
    measured = Counter((m.of, m.entry) for m in METRICS.values() if m.measure is not None)
    assert set(measured.values()) == {1}
    assert {(m.of, m.entry) for m in METRICS.values()} == set(measured)


def test_every_metric_has_its_column() -> None:
    struct = {field.name for field in RESULTS.field("similarity").type.value_type}
    for metric in METRICS.values():
        assert metric.name in (struct if metric.per_encoder else RESULTS.names)


def test_listing_metrics_imports_no_torch() -> None:
    code = "import sys, dladiff.evaluation.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
