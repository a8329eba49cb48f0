"""The DLADiff method: tensors in, tensors out. Imports no Ray, storage, command line or metrics."""

import os

# onnxruntime 1.29 and newer sends telemetry about models and machine; it reads this variable at import
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
