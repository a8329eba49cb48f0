"""Prometheus metrics of driver and actors."""
