"""Pure computation: no I/O, no clock, no threads. Everything here can be tested as a table."""
