"""Job files, Kubernetes manifests, submission, nightly runs."""
