"""Changes of other nodes into the kernel's maps."""
