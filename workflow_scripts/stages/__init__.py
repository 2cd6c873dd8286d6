"""One module per metered rule: reads its arguments, does one thing, publishes its artefact."""
