"""`dladiff evaluate` and `dladiff mos`: attacks on the protected photos, tables, ratings."""
