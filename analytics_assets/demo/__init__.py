"""The demonstration: a made-up events application, its activity, and a run of the whole pipeline on it."""
