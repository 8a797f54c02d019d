"""A page measured section by section keeps what it has, whatever becomes of the rest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
try:
    from helpers.sections import LeftOut, Section, measure
finally:
    sys.path.pop(0)


def section(title, *rows):
    def found():
        for row in rows:
            if isinstance(row, Exception):
                raise row
            yield row

    return Section(title, "What it is.", ["a", "b"], found)


def test_a_section_that_fails_costs_no_other_its_rows(capsys):
    told = []
    sections = [
        section("first", (1, 2), RuntimeError("out of memory\nand more"), (3, 4)),
        section("second", LeftOut("nothing to measure"), (5, 6)),
        section("third", (7, 8)),
    ]
    assert measure(sections, 1e6, lambda lines: told.append("\n".join(lines))) == ["first"]
    assert "out of memory" in capsys.readouterr().err
    page = told[-1]
    assert (
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n\n*Failed here: RuntimeError: out of memory*" in page
    )
    assert "*Left out from here on: nothing to measure.*" in page
    assert page.rstrip().endswith("| 7 | 8 |")
    assert "| 3 | 4 |" not in page and "| 5 | 6 |" not in page
    assert told[0].endswith("| 1 | 2 |")  # told before the failure


def test_after_the_budget_no_row_is_begun(capsys):
    begun, told = [], []

    def rows():
        begun.append(True)
        yield "row", 1

    assert not measure([Section("late", "What.", ["a", "b"], rows)], -1.0, told.append)
    assert not begun
    assert any("budget of -1 seconds was spent" in line for line in told[-1])
    assert not capsys.readouterr().err
