"""The data plane: blocking readers of one copy each. Nothing here knows about the quorum or QMP."""
