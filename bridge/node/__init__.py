"""One node: the stages wired together, started, watched and stopped."""
