"""The tables of the SunSpec models that are served, one module a subject; firmware.registers puts them together."""
