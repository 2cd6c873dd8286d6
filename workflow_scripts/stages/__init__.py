"""One module per metered rule: reads its arguments, does one thing, publishes its artefact."""

import gc

gc.set_threshold(
    100_000
)  # imports make millions of objects that stay: searching them for rubbish is a fifth of a stage's start
