"""From the configs of a sweep to the arguments of the train loop."""
