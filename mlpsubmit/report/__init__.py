"""One HTML file about a run, for people who have neither the run nor this package."""
