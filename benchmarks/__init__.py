"""What people use to carry changes of a map elsewhere, for ``mapbridge bench transports``."""
