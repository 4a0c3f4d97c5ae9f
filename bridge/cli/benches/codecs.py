"""``mapbridge bench codecs``."""

from __future__ import annotations

import click

from bridge.bench.codecs import measure
from bridge.cli import output
from bridge.cli.output import json_option


@click.command("codecs")
@click.option(
    "--changes",
    type=click.IntRange(1_000, 10_000_000),
    default=200_000,
    show_default=True,
    help="How many changes each codec encodes and decodes.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="How often; the best round counts.",
)
@json_option
def codecs(changes: int, rounds: int, as_json: bool) -> None:
    """Ways to write changes for readers, side by side: processor time to encode and decode.

    The changes are those of a connection tracker (40-byte keys, 40-byte values, 15 fields). Needs
    no privileges and no broker.

    \b
    Examples:
      mapbridge bench codecs
      mapbridge bench codecs --changes 1000000 --json
    """
    results = measure(changes, rounds)
    if as_json:
        output.print_json({"changes": changes, "codecs": results})
        return
    output.print_table(
        ["codec", "bytes", "encode us", "decode us", "encode/s", "decode/s"],
        [
            [
                each.name,
                f"{each.bytes_per_change:.1f}",
                f"{each.encode_us:.2f}",
                f"{each.decode_us:.2f}",
                f"{1e6 / each.encode_us:,.0f}",
                f"{1e6 / each.decode_us:,.0f}",
            ]
            for each in results
        ],
    )
