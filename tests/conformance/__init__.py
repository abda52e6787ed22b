"""How the appliance's Modbus server answers: one raw probe, and where SunSpec's test procedures are shown."""
