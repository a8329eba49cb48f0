"""onnxruntime sessions: one thread, CPU, no log output."""

from pathlib import Path
from typing import Any

from dladiff.faces.onnx_file import load_model


def onnx_session(model: Path | str | bytes) -> Any:
    """Return an InferenceSession of a file or of its bytes.

    One thread, so that results do not depend on the number of cores. Raises ModelError for a file that `load_model`
    refuses (onnxruntime would read weights from other files), and onnxruntime's own exceptions for other faults.
    """
    import onnxruntime

    if not isinstance(model, bytes):
        load_model(Path(model))
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), session_options(), providers=["CPUExecutionProvider"]
    )


def session_options() -> Any:
    """Return the session options, for libraries that build the session themselves."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options
