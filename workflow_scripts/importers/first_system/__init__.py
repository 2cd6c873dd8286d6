"""Run folders of the first system as records of ours: what each file says, what of it can be true, and what becomes of it."""
