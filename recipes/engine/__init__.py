"""The engine: the flow of stages, when a stage is out of date, stage folders and the `sottovoce` command line."""
