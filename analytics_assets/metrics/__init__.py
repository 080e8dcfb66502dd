"""One file a metric: the question it answers, where it is counted, the asset."""
