"""The compared methods: each a loss and a schedule over the same projected gradient ascent (`dladiff.pgd`).

Written from their papers. `methods.perturb` is the one entry; `dladiff.compared` holds bounds and schedules.
"""
