"""The benchmark of the input side runs and counts right; times are not looked at."""

import json

import pytest

from examples.benchmarks import benchmark_reading


def test_both_readers_read_the_same_frames_and_the_table_has_a_line_for_each_setting(tmp_path, capsys):
    names = ["10 s, keyframe each second", "10 s, x264's keyframes"]
    arguments = ["--seconds", "2", "--repeats", "1", "--num_frames", "2", "5", "--output_dir", str(tmp_path)]
    assert benchmark_reading.main([*arguments, "--only", *names]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["num_frames"] for row in rows] == [2, 5, 2, 5]
    assert all(row["same_pixels"] for row in rows)
    # frames 0 and 30 of 60, a keyframe at 30: two frames are decoded instead of 31
    assert rows[0]["ideal_ratio"] == pytest.approx(15.5)
    assert rows[2]["ideal_ratio"] == pytest.approx(1.0)
    table = capsys.readouterr().out
    assert table.count(" yes |") == 4
    assert not list(tmp_path.glob("*.part"))


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(SystemExit):
        benchmark_reading.main(["--num_frames", "0", "--output_dir", str(tmp_path)])
