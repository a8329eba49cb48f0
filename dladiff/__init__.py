"""The DLADiff method: tensors in, tensors out. Knows no Ray, bucket, terminal or Prometheus."""
