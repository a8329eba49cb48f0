"""One run: plan, Ray Data, the actor, progress; and what commands ask of an output."""
