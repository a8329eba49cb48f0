"""The compared methods: each a loss and a schedule over the same projected gradient ascent (`dladiff.core.pgd`).

Written from their papers. A file with a method begins with its record (`METHOD`), which makes the method known to the
settings, the command line and the documentation. `methods.compared_layer` is the one entry.
"""
