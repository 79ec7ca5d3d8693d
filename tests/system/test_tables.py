"""Tables of text: cells stand as they are given, and nothing in a cell breaks a Markdown row."""

from hmamba_asr.system.tables import markdown_table, text_table


def test_cells_stand_as_they_are_given():
    table = text_table([["a", "1.20"], ["bbb", None]], ["name", "rate"], align=("left", "right"))
    assert table.splitlines() == ["name      rate", "a         1.20", "bbb"]


def test_nothing_in_a_cell_breaks_a_markdown_row():
    header, rule, row = markdown_table([["a|b\nc", "2"]], ["x|y", "n"], align=("left", "right")).splitlines()
    assert header.startswith("| x\\|y ") and row.startswith("| a\\|b c ")
    assert rule.split("|")[1].startswith(":") and rule.split("|")[2].endswith(":")


def test_a_table_without_rows_has_its_header():
    assert text_table([], ["x", "y"]).split() == ["x", "y"]
    assert markdown_table([], ["x", "y"]).startswith("| x ")
