"""The actor of a cluster: it reports whether it can work, and returns its tasks when it cannot."""

import json
from typing import Any

from pipeline.run.actor import FATAL, OUT_OF_REACH, ProtectIdentity
from pipeline.run.fitness import Reporter
from pipeline.run.task_rows import Payload

UNFIT = "unfit"  # status of a task that a worker returns because it cannot work


class ReportingActor(ProtectIdentity):
    """One worker of several on different nodes."""

    def __init__(self, board: Any, **arguments: Any) -> None:
        """`board`: of the stage; `arguments`: of ProtectIdentity."""
        super().__init__(**arguments)
        self.reporter = Reporter(board)
        self.fault: Payload | None = None

    def __call__(self, row: Payload) -> Payload:
        """Do one task. A worker that cannot work returns it after the last task of the others, with status `unfit`."""
        if self.fault is None:
            self.reporter.began()
            done = super().__call__(row)
            result = json.loads(done["result"])
            if result["status"] not in (FATAL, OUT_OF_REACH):
                self.reporter.ended()
                return done
            self.fault = result
            self.reporter.wait_with(result["reason"], lasting=result["status"] == FATAL)
        return {"result": json.dumps({"status": UNFIT, "reason": self.fault["reason"], "work": row["work"]})}
