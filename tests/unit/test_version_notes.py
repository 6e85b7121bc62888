"""trainer.tracking.version_notes: a section of a description is replaced, the rest stays."""

import pytest

from trainer.tracking.version_notes import with_section

SECTION = "## Champion\nversion 2\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", SECTION),
        ("An encoder.", f"An encoder.\n\n{SECTION}"),
        ("An encoder.\n\n## Champion\nnone yet\n", f"An encoder.\n\n{SECTION}"),
        ("## Champion\nnone yet\nand more\n", SECTION),
        ("A\n\n## Champion\nnone\n\n## Data\nyeast\n", f"A\n\n{SECTION}\n## Data\nyeast\n"),
        (
            "## Data\nyeast\n\n## Champions of old\nnone\n",
            f"## Data\nyeast\n\n## Champions of old\nnone\n\n{SECTION}",
        ),
    ],
)
def test_section(before: str, after: str) -> None:
    once = with_section(before, "Champion", "version 2")
    assert once == after
    assert with_section(once, "Champion", "version 2") == after
