"""Frozen facts and pure tables: what every other floor agrees on. No I/O, no clock, no globals."""
