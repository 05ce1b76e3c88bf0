import json

from jaxseg.train.log import keep_lines, write_whole


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 10, "loss": 1.0},
        {"step": 10, "split": "val", "mean_iu": 0.5},
        {"step": 20, "loss": 0.5},
        {"step": 20, "split": "val", "mean_iu": 0.6},
        {"step": 30, "loss": 0.4},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 40, "lo')
    keep_lines(path, done=20, evaluated=10)
    assert lines(path) == rows[:3]


def test_files_are_written_whole(tmp_path):
    path = tmp_path / "scores.json"
    write_whole(path, "1")
    write_whole(path, "22")
    assert path.read_text() == "22"
    assert [p.name for p in tmp_path.iterdir()] == ["scores.json"]
