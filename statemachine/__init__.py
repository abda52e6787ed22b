"""The product's decisions, as tables. Pure: no I/O, no clock, no thread, no logging, no configuration files."""
