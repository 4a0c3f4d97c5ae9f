"""Measurements of this machine: whole processes and real parts."""
