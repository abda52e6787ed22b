"""Grammar fuzzing of the Modbus server against a second, independent reading of the specification."""
