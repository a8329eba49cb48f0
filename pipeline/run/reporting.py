"""The actor of a cluster: it reports whether it can work, and returns its tasks when it cannot."""

import json
from importlib.metadata import version
from typing import Any

from pipeline.run.actor import FATAL, OUT_OF_REACH, ProtectIdentity
from pipeline.run.fitness import Reporter
from pipeline.run.task_rows import Payload

UNFIT = "unfit"  # status of a task that a worker returns because it cannot work


class ReportingActor(ProtectIdentity):
    """One worker of several on different nodes."""

    def __init__(self, board: Any, dladiff: str, **arguments: Any) -> None:
        """`board`: of the stage; `dladiff`: the driver's version; `arguments`: of ProtectIdentity."""
        super().__init__(**arguments)
        self.reporter = Reporter(board)
        self.fault: Payload | None = None
        have = version("dladiff")  # with another one the same settings may mean other photos
        self.other_version = (
            f"it has dladiff {have}, the driver {dladiff}; install one version" if have != dladiff else ""
        )

    def __call__(self, row: Payload) -> Payload:
        """Do one task. A worker that cannot work returns it after the last task of the others, with status `unfit`."""
        if self.fault is None:
            self.reporter.began()
            done, result = self._done(row)
            if result["status"] not in (FATAL, OUT_OF_REACH):
                self.reporter.ended()
                return done
            self.fault = result
            self.reporter.wait_with(result["reason"], lasting=result["status"] == FATAL)
        return {"result": json.dumps({"status": UNFIT, "reason": self.fault["reason"], "work": row["work"]})}

    def _done(self, row: Payload) -> tuple[Payload, Payload]:
        if self.other_version:
            return {}, {"status": FATAL, "reason": self.other_version}
        done = super().__call__(row)
        return done, json.loads(done["result"])
