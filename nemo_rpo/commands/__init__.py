"""One file per subcommand of ``nemo-rpo``: ``add_arguments(parser)``, and ``run(args)`` that may return a status."""
