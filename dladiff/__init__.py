"""The DLADiff method: tensors in, tensors out. Knows no Ray, bucket, terminal or Prometheus."""

import os

# onnxruntime 1.29 and newer sends events about models and machine to its maker, and reads this when it is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
