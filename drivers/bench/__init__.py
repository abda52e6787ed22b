"""The bench: a simulated rack, PCS and I/O board behind the interfaces of real ones. Sign: + is discharge."""
