"""One module per metered rule: reads its arguments, does one thing, publishes its artefact."""

import gc

# Imports make millions of objects that stay: searching them for rubbish is a fifth of a stage's start.
gc.set_threshold(100_000)
