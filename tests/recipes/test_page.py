"""The page that a recipe writes."""

import subprocess

import pytest
from lepton_train.plots import before_and_after
from lepton_train.recipe_page import (
    over_seeds,
    rows_over_seeds,
    show_table,
    version_of,
    write_page,
)

import lepton_kernels as lk


def test_a_page_holds_command_tables_and_where_it_was_measured(tmp_path):
    runs = [[{"step": "a", "score": 0.5}], [{"step": "a", "score": 0.75}]]
    table = rows_over_seeds(runs, {"score": ".2f"})
    assert table == [["a", "0.62 (0.50 to 0.75)"]]
    assert over_seeds([1.0]) == "1.0000"
    page = write_page(
        tmp_path / "page.md", __file__, title="T", line="run it", picture="p.png",
        tables=[(("step", "score"), table)], notes=["two seeds"],
    )  # fmt: skip
    text = page.read_text()
    for part in ("# T\n", "run it", "| a | 0.62 (0.50 to 0.75) |", "two seeds", "![T](p.png)"):
        assert part in text
    assert f"lepton-kernels version {lk.__version__}, commit" in text


def test_bars_of_equal_numbers_have_no_negative_whiskers(tmp_path):
    pytest.importorskip("matplotlib")
    bars = [{"step": "a", "score": [0.1] * 3, "size_mb": [7.6] * 3, "latency_ms": [1.0, 2.0, 3.0]}]
    assert before_and_after(bars, tmp_path / "bars.png", "accuracy").is_file()


def test_the_table_of_a_benchmark_is_printed_and_written_if_asked_for(tmp_path, capsys):
    table = {"title": "T", "heads": ("way", "ms"), "rows": [["ours", "1.5"]], "notes": ["n"]}
    show_table(None, "benchmarks/some_way.py", **table)
    assert "ours" in capsys.readouterr().out
    show_table(tmp_path / "a.md", "benchmarks/some_way.py", **table)
    text = (tmp_path / "a.md").read_text()
    assert "python benchmarks/some_way.py --page docs/some_way.md" in text
    assert "| ours | 1.5 |" in text
    assert "wrote" in capsys.readouterr().out


def test_the_commit_is_that_of_the_recipe_and_unknown_outside_a_clone(tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("")
    assert "commit not recorded (run outside a clone)" in version_of(recipe)

    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *arguments],
            check=True, capture_output=True,
        )  # fmt: skip

    git("init")
    git("add", ".")
    git("commit", "-m", "another project")
    assert "commit not recorded" in version_of(recipe)
    (tmp_path / "pyproject.toml").write_text('name = "lepton-kernels"')
    git("add", ".")
    git("commit", "-m", "a clone")
    assert "not recorded" not in (clean := version_of(recipe))
    recipe.write_text("changed")
    assert version_of(recipe) == clean + " with changes"
