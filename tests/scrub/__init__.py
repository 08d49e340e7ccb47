"""The engine's parts, each alone; as a whole it is tested by the simulator and on the real daemon."""
