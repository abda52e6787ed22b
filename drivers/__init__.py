"""The outside world: lines, loops, devices and their wire formats. Takes no decisions."""
