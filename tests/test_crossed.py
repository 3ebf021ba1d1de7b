"""plots/crossed.py on made-up evaluations."""

import json

import pytest

from commands import plot
from runtime.runfolder import UserError


def test_a_table_and_a_figure_of_two_tasks(tmp_path, capsys):
    models = []
    for i, name in enumerate(("base", "countdown", "multiplication")):
        sets = {
            "countdown:wording=short": {"accuracy": 0.1 + 0.2 * i, "search_share": 0.3, "tokens": 40.0,
                                        "accuracy_ci": [0.05 + 0.2 * i, 0.15 + 0.2 * i]},
            "multiplication": {"accuracy": 0.15, "decomposes": 0.25, "decomposes_fully": 0.1, "tokens": 21.5},
        }  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval.json").write_text(json.dumps({"sets": sets}))
        models.append(f"{name}={tmp_path / name}")
    assert plot.main(["crossed", *models, "--out", str(tmp_path / "x.png")]) == 0
    output = capsys.readouterr().out
    assert "| base | 10.0% | 30.0% | 40.0 | 15.0% | 25.0% | 10.0% | 21.5 |" in output
    assert (tmp_path / "x.png").stat().st_size > 10_000
    assert plot.main(["crossed", *models]) == 0 and (tmp_path / "base" / "crossed.pdf").exists()
    (tmp_path / "base" / "eval.json").write_text(json.dumps({"sets": {"countdown": {}}}))
    for words, message in (
        (models, "was not evaluated on multiplication"),
        ([f"x={tmp_path}"], "no finished evaluation"),
        ([str(tmp_path)], "NAME=FOLDER is expected"),
    ):
        with pytest.raises(UserError, match=message):
            plot.main(["crossed", *words])
