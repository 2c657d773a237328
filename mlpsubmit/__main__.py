"""``python -m mlpsubmit``: the command line, where its script is not on the PATH."""

from mlpsubmit.cli.main import main

if __name__ == "__main__":
    main()
