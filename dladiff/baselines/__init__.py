"""The compared methods: each a loss and a schedule over the same projected gradient ascent (`dladiff.pgd`).

Written from their papers. `methods.compared_layer` is the one entry; `dladiff.compared` holds bounds and schedules.
"""
