"""Modbus TCP: framing, a strict server, a checked client, and typed points."""
