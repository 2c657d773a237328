"""The command line: one file per command, each a thin shell over :class:`mlpsubmit.run.Run`."""
