"""Text of others in messages: one line that a terminal shows and does not obey."""

import pytest

from hf_tps.plain_text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("clip 1 (é, 视频).mp4", "clip 1 (é, 视频).mp4"),
        ("a\x1b[2Jb\nerror: forged\r", r"a\x1b[2Jb\nerror: forged\r"),
        ("right\u202eto left\u2028", r"right\u202eto left\u2028"),
        ("name of another encoding \udcff", r"name of another encoding \udcff"),
        (OSError("line one\nline two"), r"line one\nline two"),
    ],
)
def test_control_characters_are_escaped_and_letters_are_not(text, shown):
    assert printable(text) == shown


def test_long_text_is_cut_where_the_limit_says():
    assert printable("x" * 300) == "x" * 300
    assert printable("x" * 301) == "x" * 300 + "..."
    assert printable("\n" * 9, limit=2) == r"\n\n..."
