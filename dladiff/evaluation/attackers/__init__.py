"""What an attacker does with photos: fine-tuning and zero-shot customization, without the protection's own code.

A file with an attack begins with its record (`ATTACK`), which makes it known to the command line, the tables and the
documentation.
"""
