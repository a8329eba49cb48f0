"""What `dladiff doctor` looks at: this machine; with an address what a driver needs here, and the cluster."""

import socket
from urllib.parse import urlsplit

from dladiff.errors import DladiffError
from pipeline.config import RunConfig
from pipeline.doctor.checks import ANSWER_S, Check, input_check, machine_checks, model_check, storage_checks


def doctor(config: RunConfig | None = None, *, output: str | None = None, address: str | None = None) -> list[Check]:
    """Check Python, packages, memory, GPU; with a configuration its models, input and output.

    With a cluster's `address` check that it answers. Its nodes have their own checks (`pipeline.doctor.nodes`): models
    and GPU are then not looked for on this machine, input and output neither where the driver runs on the head (http).
    Writes only a probe object to the output, and deletes it.
    """
    found = [*machine_checks(config if address is None else None)]
    uri = output or (config.output if config else None)
    if config is not None and address is None:
        found.append(model_check(config))
    if not (address or "").startswith("http"):
        found += [input_check(config)] if config is not None else []
        found += storage_checks(uri) if uri is not None else []
    if address is not None:
        found.append(reach(address))
    return found


def with_scheme(address: str) -> str:
    """Return an address with a scheme, so that a password in it is redacted."""
    return address if "://" in address else f"ray://{address}"


def reach(address: str) -> Check:
    """Check that a head answers: the Jobs API of an http address, or the port of a Ray address."""
    address = with_scheme(address)
    try:
        split = urlsplit(address)
        if split.scheme.startswith("http"):
            from pipeline.cluster.submit import jobs

            return Check("ray", True, f"{address}: {len(jobs(address))} jobs of dladiff")
        with socket.create_connection((split.hostname or "", split.port or 6379), timeout=ANSWER_S):
            return Check("ray", True, f"{address} answers")
    except DladiffError as error:
        return Check("ray", False, str(error))
    except (OSError, ValueError) as error:
        return Check("ray", False, f"{address} does not answer ({error}); is the head up, and the port open from here?")
