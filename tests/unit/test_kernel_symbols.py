"""Names that compilers change, found in the kernel's list of symbols."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import UnavailableError
from bridge.kernel.symbols import Symbol, SymbolTable, variable_addresses

LIST = b"""\
ffffffff81000000 T _stext
ffffffff81200000 t bpf_map_update_value.isra.0.cold
ffffffff81200100 t bpf_map_update_value.isra.0
ffffffff81200200 t __pfx_htab_map_update_elem
ffffffff81200210 t htab_map_update_elem
ffffffff81200300 t htab_map_update_elem_in_place
ffffffff81200400 t helper.part.0
ffffffff81200500 t helper.constprop.0.isra.3
ffffffff81200600 t twin
ffffffff81200700 t twin
ffffffff82000000 d a_variable
ffffffffc0000000 t of_a_module\t[nf_conntrack]
ffffffffc0000100 T last"""


def test_resolve() -> None:
    table = SymbolTable(LIST)
    found = table.resolve(
        ["bpf_map_update_value", "htab_map_update_elem", "helper", "of_a_module", "last", "twin"]
    )
    assert found == {
        "bpf_map_update_value": Symbol("bpf_map_update_value.isra.0", 0xFFFFFFFF81200100),
        "htab_map_update_elem": Symbol("htab_map_update_elem", 0xFFFFFFFF81200210),
        "helper": Symbol("helper.constprop.0.isra.3", 0xFFFFFFFF81200500),
        "of_a_module": Symbol("of_a_module", 0xFFFFFFFFC0000000),
        "last": Symbol("last", 0xFFFFFFFFC0000100),
        "twin": Symbol("twin", 0xFFFFFFFF81200600, twins=1),
    }


@pytest.mark.parametrize("name", ["a_variable", "htab_map", "update_elem", "nothing", "_stex"])
def test_not_a_function(name: str) -> None:
    assert SymbolTable(LIST).resolve([name]) == {name: None}


def test_hidden_addresses() -> None:
    hidden = SymbolTable(b"0000000000000000 T one\n0000000000000000 t two.isra.0\n")
    assert hidden.resolve(["two"]) == {"two": Symbol("two.isra.0", 0)}


def test_no_list() -> None:
    with pytest.raises(UnavailableError, match="No such file"):
        SymbolTable.load("/proc/no_such_list")


def test_addresses_of_variables(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_text(
        "000000000001fb40 A __preempt_count\n"
        "0000000000000000 A hidden\n"
        "ffffffff8241cb60 D __per_cpu_offset\n"
        "ffffffff81000000 D __per_cpu_offset_of\n"
        "ffffffffc0000000 d per_cpu\t[module]\n"
    )
    found = variable_addresses(("__preempt_count", "__per_cpu_offset", "hidden", "none"), path)
    assert found == {"__preempt_count": 0x1FB40, "__per_cpu_offset": 0xFFFFFFFF8241CB60}
