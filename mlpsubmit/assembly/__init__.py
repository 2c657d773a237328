"""From the configs of a sweep to what the train loop takes."""
