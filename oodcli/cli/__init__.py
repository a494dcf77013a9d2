"""The command line: the only part that knows Typer and Rich."""
