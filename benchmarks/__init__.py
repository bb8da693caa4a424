"""Measurements, one command each, printed as tables. Never part of the tests: machines are noisy."""
