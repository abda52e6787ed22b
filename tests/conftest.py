"""Helpers beside the tests are imported by their plain names."""
