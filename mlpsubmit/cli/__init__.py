"""The command line: a file per command, each a thin layer over :class:`mlpsubmit.runs.run.Run`."""
