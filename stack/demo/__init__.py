"""`make demo`: the whole way from new rows to a better model in a consumer's hands, on real flights, with every server real.

In: the flights of New York 2013 and the example repositories. Out: a story in the terminal, and exit code 0 only when all of it was seen.
It talks to the product from outside: over its database, git repository, REST interface and webhook.
"""

from __future__ import annotations

import argparse


def main(args: argparse.Namespace) -> int:
    """`python -m stack demo`."""
    from stack.demo.stage import play

    return play(args.state)
