"""Tests of the state of an installation and of alerts."""
