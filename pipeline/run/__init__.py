"""One run: plan, Ray Data, actor, progress; and status, failures and verification of an output."""
