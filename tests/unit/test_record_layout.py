"""The C struct and the numpy type of a record are twins: the compiler is asked, not the source."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

import pytest

from bridge.capture.record import DURATION_UNKNOWN, HEADER, SCRATCH_SIZE, Flag, Layout
from bridge.model import Op
from bridge.resources import bpf_directory

KEY_SIZES = (1, 4, 7, 8, 13, 16, 40, 509)
VALUE_SIZES = (1, 8, 17, 24, 4096, 32_704, 32_736, 32_737, 65_536)
DURATIONS = ((0, 7), (1, 1), (5, 12), (1, 1 + 0xFFFFFFFE), (1, 1 + 0xFFFFFFFF), (9, 8))

_PROBE = """
#include <stdio.h>
#include "record.h"
#define FIELD(name) printf("\\"%s\\": [%zu, %zu],", #name, \\
	__builtin_offsetof(struct mb_header, name), sizeof(((struct mb_header *)0)->name))
#define NUMBER(name) printf("\\"%s\\": %lu,", #name, (unsigned long)(name))
int main(void)
{
	printf("{\\"fields\\": {");
	FIELD(left); FIELD(duration); FIELD(writer); FIELD(count); FIELD(op); FIELD(flags); FIELD(cpu);
	printf("\\"\\": 0}, \\"numbers\\": {");
	NUMBER(sizeof(struct mb_header)); NUMBER(MB_SCRATCH_SIZE); NUMBER(MB_DURATION_UNKNOWN);
	NUMBER(MAPBRIDGE_UPDATE); NUMBER(MAPBRIDGE_DELETE); NUMBER(MAPBRIDGE_EVICT);
	NUMBER(MB_BATCH); NUMBER(MB_READ_KEY); NUMBER(MB_RESCAN);
	printf("\\"\\": 0}, \\"sizes\\": [");
	@SIZES@
	printf("0], \\"durations\\": [");
	@DURATIONS@
	printf("0]}\\n");
	return 0;
}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("layout")
    source, program = folder / "probe.c", folder / "probe"
    sizes = "".join(
        f'printf("[%lu,%d],", 0ul + MB_SINGLE_SIZE({k}u, {v}u), MB_SINGLE_FITS({k}u, {v}u));'
        for k, v in itertools.product(KEY_SIZES, VALUE_SIZES)
    )
    durations = "".join(f'printf("%u,", mb_duration({n}ull, {e}ull));' for n, e in DURATIONS)
    source.write_text(_PROBE.replace("@SIZES@", sizes).replace("@DURATIONS@", durations))
    _compile(source, program)
    said = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    answer: dict[str, object] = json.loads(said)
    return answer


def _compile(source: Path, program: Path) -> None:
    command = ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{bpf_directory()}"]
    subprocess.run([*command, str(source), "-o", str(program)], check=True, timeout=60)


def test_fields_have_the_offsets_and_sizes_of_the_c_struct(compiled: dict[str, object]) -> None:
    fields = compiled["fields"]
    assert isinstance(fields, dict)
    del fields[""]
    assert HEADER.fields is not None
    ours = {name: [at[1], at[0].itemsize] for name, at in HEADER.fields.items()}
    assert ours == fields


def test_numbers_are_those_of_the_c_header(compiled: dict[str, object]) -> None:
    numbers = compiled["numbers"]
    assert isinstance(numbers, dict)
    assert numbers == {
        "sizeof(struct mb_header)": HEADER.itemsize,
        "MB_SCRATCH_SIZE": SCRATCH_SIZE,
        "MB_DURATION_UNKNOWN": DURATION_UNKNOWN,
        **{f"MAPBRIDGE_{op.name}": op.value for op in Op},
        **{f"MB_{flag.name}": flag.value for flag in Flag},
        "": 0,
    }


def test_sizes_of_singles_agree_and_large_values_are_left_out(compiled: dict[str, object]) -> None:
    sizes = compiled["sizes"]
    assert isinstance(sizes, list)
    carried = []
    for (key, value), (size, fits) in zip(
        itertools.product(KEY_SIZES, VALUE_SIZES), sizes[:-1], strict=True
    ):
        layout = Layout(key, value)
        assert layout.carries_value == bool(fits), (key, value)
        carried.append(layout.carries_value)
        if fits:
            assert layout.single_size == size, (key, value)
        else:
            assert layout.single_size == 24 + (key + 7) // 8 * 8, (key, value)
    assert True in carried
    assert False in carried


def test_duration_saturates_where_the_entry_is_unknown(compiled: dict[str, object]) -> None:
    unknown = DURATION_UNKNOWN
    assert compiled["durations"] == [unknown, 0, 7, 0xFFFFFFFE, unknown, unknown, 0]
