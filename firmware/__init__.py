"""The processes of the appliance, one file each, and what they share."""
