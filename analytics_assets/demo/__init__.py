"""The demonstration: a made-up events application, its activity, and a run of everything on it."""
