"""The command line: a file per command, each a thin shell over :class:`mlpsubmit.runs.run.Run`."""
