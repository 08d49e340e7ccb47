"""The engine: scans copies, confirms what differs, repairs the outvoted. Knows its ports, never who implements them."""
