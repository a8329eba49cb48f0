"""The compared methods: each a loss and a schedule over the same projected gradient ascent (`dladiff.core.pgd`).

Written from their papers. `methods.compared_layer` is the one entry; bounds and schedules
are in `dladiff.settings.schedules`.
"""
