"""All codecs of the benchmark are there and do something."""

from __future__ import annotations

from bridge.bench.codecs import measure


def test_every_codec_is_measured() -> None:
    found = {each.name: each for each in measure(2003, 1)}
    assert list(found) == ["json-in-any", "typed-each", "json-feed", "typed-feed", "columns"]
    assert all(each.encode_us > 0 and each.decode_us > 0 for each in found.values())
    sizes = {name: each.bytes_per_change for name, each in found.items()}
    assert sizes["columns"] < sizes["typed-feed"] < sizes["json-in-any"] < sizes["json-feed"]
