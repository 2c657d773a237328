"""A launched sweep: made, found, looked at, resumed and collected."""
