"""The `neurolm` command: `main` reads the command line, a module each does the work of a sub-command.

Nothing heavy is imported before a command needs it: `neurolm --help` and `neurolm info` load neither torch nor
transformers, `neurolm --help` not even numpy.
"""
