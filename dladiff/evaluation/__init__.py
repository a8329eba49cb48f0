"""Measures how well protected photos resist customization: attackers, preprocessing, metrics, tables."""
