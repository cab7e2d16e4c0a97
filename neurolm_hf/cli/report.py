"""x"""

HELP = "x"


def add_options(p):
    pass


def run(o, c):
    pass
