"""The attackers: fine-tuning and zero-shot customization. They share no code with the protection.

Each file with an attack defines one record, `ATTACK`. The command line, the tables and the documentation read the
records.
"""
