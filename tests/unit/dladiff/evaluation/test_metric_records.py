"""What holds for every metric: one place each, one measurer of each stored entry, a column and a heading."""

import subprocess
import sys
from collections import Counter

from dladiff.evaluation.metrics import METRICS
from pipeline.records.schema import RESULTS


def test_columns_have_one_order_and_each_entry_is_measured_once() -> None:
    places = [metric.place for metric in METRICS.values()]
    assert places == sorted(set(places))
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
