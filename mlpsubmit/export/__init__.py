"""The configs of a run in the trackers of others: TensorBoard, and Weights & Biases."""
