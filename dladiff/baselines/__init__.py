"""The compared methods: each a loss and a schedule over the same projected gradient ascent (`dladiff.core.pgd`).

Written from their papers. The record (`METHOD`) in a method's file makes the method known to the settings, the command
line and the documentation. `methods.compared_layer` runs a method.
"""
