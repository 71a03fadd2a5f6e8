"""Identifiers and phrases that the program no longer uses; ordinary words are a matter of review."""

import re

import pytest

from tests.conftest import REPOSITORY

IDENTIFIERS = [
    "take_up", "gather_turns", "from_main", "share_gradients", "share_buffers", "TrainOrder",
    "_answers", "made_of", "make_newest", "_step_aside", "failing_gently", "find_damage", "through_files", "left_out",
    "require_whole", "warn_of_overlap", "CROWD_PART", "screen_is_gone", "_its_error_is_the_user_s",
    "_end_when_the_training_process_says_so", "OF_THE_CALL", "DISK_SAYS_NO",
    "run_script", "validate_training", "validate_given", "READER_ARGUMENTS", "READER_SETTINGS", "OF_THIS_MACHINE",
    "VocDataset", "CocoDataset", "ShapesDataset", "JoinedDataset", "WithoutClasses", "ImageFiles", "CheckedLoader",
]  # fmt: skip
PHRASES = [
    "taken up again", "meeting point", "senseless", "slip of the pen", "whole number", "a stranger's file",
    "equal in every bit", "so-manieth", "score will flatter", "RoIs are drawn",
]  # fmt: skip
TEXTS = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for pattern in ("*.py", "detector/**/*.py", "scripts/**/*.py", "configs/**/*.yaml", "*.md", "docs/*.md")
    for path in REPOSITORY.glob(pattern)
}


@pytest.mark.parametrize("retired", [rf"\b{name}\b" for name in IDENTIFIERS] + PHRASES)
def test_retired_words_do_not_come_back(retired):
    assert len(TEXTS) > 100
    assert [path for path, text in TEXTS.items() if re.search(retired, text)] == []
