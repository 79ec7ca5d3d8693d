"""Tables of text: cells stand as they are given, and nothing in a cell breaks a Markdown row."""

import pytest

from hmamba_asr.system.tables import markdown_table, split_table, text_table


def test_cells_stand_as_they_are_given():
    table = text_table([["a", "1.20"], ["bbb", None]], ["name", "rate"], align=("left", "right"))
    assert table.splitlines() == ["name  rate", "----  ----", "a     1.20", "bbb"]


def test_nothing_in_a_cell_breaks_a_markdown_row():
    header, rule, row = markdown_table([["a|b\nc", "2"]], ["x|y", "n"], align=("left", "right")).splitlines()
    assert header.startswith("| x\\|y ") and row.startswith("| a\\|b c ")
    assert rule.split("|")[1].startswith(":") and rule.split("|")[2].endswith(":")


def test_a_table_without_rows_has_its_header():
    assert text_table([], ["x", "y"]).splitlines()[0].split() == ["x", "y"]
    assert markdown_table([], ["x", "y"]).startswith("| x ")


@pytest.mark.parametrize(
    ("width", "groups", "expected"),
    [
        (80, [2, 2], ["k a b c d"]),
        (25, [2, 2], ["k a b", "k c d"]),
        (25, [1, 3], ["k a b", "k c d"]),  # the group of three is too wide
        (35, [3, 1], ["k a b c", "k d"]),
        (15, [2, 2], ["k a", "k b", "k c", "k d"]),
        (5, [], ["k a", "k b", "k c", "k d"]),
    ],
)
def test_a_wide_table_is_split_at_its_groups(width, groups, expected):
    headers = [name * 8 for name in "abcd"]
    tables = split_table(text_table, [["1"] * 5], ["k", *headers], groups=groups, width=width)
    assert [" ".join(cell[0] for cell in table.splitlines()[0].split()) for table in tables] == expected
    for table, names in zip(tables, expected, strict=True):
        assert table.splitlines()[2].split() == ["1"] * len(names.split())
