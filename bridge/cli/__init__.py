"""The command ``mapbridge``: one module per subcommand, loaded when it is called."""
