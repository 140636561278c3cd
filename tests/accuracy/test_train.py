"""What the two recipes reach on the real photos of test/, which no setting was chosen on."""

from __future__ import annotations

from pathlib import Path

from train.run import open_run


def test_the_pooled_head(flowers_run: Path) -> None:
    test = open_run(flowers_run).metrics["test"]
    assert test["n"] >= 250
    assert test["top1"] >= 0.87


def test_the_article_s_recipe(article_run: Path) -> None:
    test = open_run(article_run).metrics["test"]
    assert test["n"] >= 250
    assert test["top1"] >= 0.82
