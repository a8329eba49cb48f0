"""The columns of tables: a metric, for each encoder where it has one, and again after each `--rescore`."""

from dataclasses import dataclass

from dladiff.evaluation.metrics import in_table
from dladiff.evaluation.metrics.record import Metric
from dladiff.evaluation.summaries import Group, Values
from dladiff.evaluation.tables import Evaluation, cell, cell_with_n


@dataclass(frozen=True)
class Column:
    """A metric by one encoder; `rescore` names the preprocessing of the generated pictures before scoring."""

    metric: Metric
    encoder: str
    heading: str
    rescore: str = ""

    def values(self, group: Group, prompt: str) -> Values:
        """Return each person's values."""
        return group.values(self.metric.name, self.encoder, prompt, self.rescore)

    def cell(self, group: Group, prompt: str) -> str:
        """Return the mean with its interval as text."""
        if self.metric.cell is not None:
            return self.metric.cell([v for values in self.values(group, prompt).values() for v in values])
        estimate = group.estimate(self.metric.name, self.encoder, prompt, self.rescore)
        return (cell_with_n if self.metric.show_n else cell)(estimate, self.metric.digits)


def columns(evaluation: Evaluation, *tables: str) -> list[Column]:
    """Return the columns of these kinds of table. Verification by an encoder without a threshold has none."""
    return [
        Column(metric, encoder, _heading(evaluation, metric, encoder, rescore), rescore)
        for table in tables
        for metric in in_table(table)
        for rescore in ("", *(evaluation.rescores if metric.rescored else ()))
        for encoder in (evaluation.encoders if metric.per_encoder else ("",))
        if not metric.verifies or encoder in evaluation.thresholds
    ]


def headings(evaluation: Evaluation, *tables: str) -> list[str]:
    """Return the headings of these kinds of table."""
    return [column.heading for column in columns(evaluation, *tables)]


def cells_of(evaluation: Evaluation, group: Group, prompt: str, *tables: str) -> list[str]:
    """Return a row's cells under `headings`."""
    return [column.cell(group, prompt) for column in columns(evaluation, *tables)]


def _heading(evaluation: Evaluation, metric: Metric, encoder: str, rescore: str) -> str:
    name = f"{metric.heading} {evaluation.label(encoder)}" if encoder else metric.heading
    return f"{name} after {rescore}" if rescore else name
