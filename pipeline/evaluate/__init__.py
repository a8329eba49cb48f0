"""`dladiff evaluate`, `calibrate` and `mos`: attacks on the protected photos, thresholds, tables, ratings."""
