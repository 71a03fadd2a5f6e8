"""FEATURES.md and FAULTS.md name tests that exist."""

import re

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.parametrize(("document", "folder"), [("FEATURES.md", "."), ("FAULTS.md", "tests")])
def test_the_tests_of_a_document_exist(document, folder):
    """As `tests/X.py::PART_OF_A_NAME`, in FAULTS.md also `X.py::test_case_25_*`."""
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?", (REPOSITORY / document).read_text())
    tests = [(REPOSITORY / folder / path, part) for path, part in named if "test_" in path]
    assert len(tests) > 50
    missing = [path.name for path, _ in tests if not path.is_file()]
    assert missing == []
    found = {path: re.findall(r"(?:def|class) (\w+)", path.read_text()) for path, _ in tests}
    assert [(path.name, part) for path, part in tests if part not in "\n".join(found[path])] == []
