"""The sums of the page on scale."""

from __future__ import annotations

from tests.scale.__main__ import Units, total

UNITS = Units(
    message_bytes=236.0,
    change_bytes=44.0,
    send_us=200.0,
    store_us=100.0,
    deliver_us=5.0,
    deliver_change_us=0.05,
    read_us=40.0,
    read_change_us=0.1,
    idle_server_us=16.0,
    origin_bytes=180.0,
    entry_bytes=34.0,
)


def test_what_arrives_grows_with_the_nodes_and_what_the_server_sends_with_their_square() -> None:
    few, many = (total(UNITS, nodes, 100.0, 20.0, 0) for nodes in (10, 1_000))
    assert many.messages_in == 100 * few.messages_in
    assert many.server_bytes_out == 100**2 * few.server_bytes_out
    assert 0.95 < many.server_cores / (1_000 * 1_000 * 20 * (5.0 + 5 * 0.05) / 1e6) < 1.05


def test_a_message_holds_a_change_at_least_and_many_readers_share_what_they_ask() -> None:
    assert total(UNITS, 10, 3.0, 20.0, 0).messages_out == 3.0
    asked = [total(UNITS, nodes, 1.0, 1.0, 0).asked * nodes for nodes in (1_000, 2_000)]
    assert asked[1] - asked[0] < 0.11 * 1_000, "only the word of what is synced grows"
