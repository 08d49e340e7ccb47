"""qorumctl: keep a disk as three (or more, odd) copies, vote on every sector, repair the minority."""

__version__ = "0.1.0"
