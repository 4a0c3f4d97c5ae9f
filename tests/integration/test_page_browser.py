"""The daemon's page in a real browser: live, on a phone, with a silent node, and stale."""

from __future__ import annotations

import re

from bridge.kernel.features import Capability
from bridge.model import Role
from tests.integration.browser_kit import browser
from tests.integration.kernel_support import needs
from tests.node_kit import Rig, content, fill, map_name, mapbridge, until

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_SYS_ADMIN)

TEXT = "document.body.innerText"


def test_the_page_in_a_browser(rig: Rig) -> None:
    name, a, b = map_name(), rig.map("a"), rig.map("b")
    listen = '[http]\nlisten = "127.0.0.1:0"\n'
    one = rig.node("one", rig.entry(name, "a", Role.REPLICATE), more=listen)
    two = rig.node("two", rig.entry(name, "b", Role.REPLICATE))
    found = re.search(r"http://[0-9.:]+", one.log_path.read_text())
    assert found is not None
    fill(a, range(53), 1)
    until(lambda: content(a) == content(b) and b.count() == 53, "the entries")
    with browser() as page:
        page.show(390, 844)
        page.open(f"{found[0]}/")
        page.until("document.getElementById('live').textContent == 'live'")
        page.until(f"{TEXT}.includes('2 of 2')")
        assert f"{name}" in str(page.value(TEXT))
        assert page.value("document.documentElement.scrollWidth") == 390, "scrolls sideways"
        page.until(f"{TEXT}.includes('not compared')")
        assert mapbridge("verify", name, "-c", str(one.config_path)).returncode == 0
        page.until(f"!{TEXT}.includes('not compared')")
        assert page.said == [], "errors, or refused by the page's own policy"
        outside = [url for url in page.requested if not url.startswith((found[0], "data:"))]
        assert outside == []
        two.process.kill()
        two.process.wait()
        page.until(f"{TEXT}.includes('silent for')")
        one.process.kill()
        one.process.wait()
        page.until("document.body.classList.contains('stale')")
        page.until(f"{TEXT}.includes('stale: nothing heard for')")
