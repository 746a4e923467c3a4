"""docs/identity.md says what the tests saw."""

from tests.stack.tailnet import matrix


def test_the_tables_of_the_documentation_are_those_that_a_real_tailnet_is_held_to() -> None:
    document = matrix.DOCUMENT.read_text("utf-8")
    assert matrix.written(document) == document, "python -m tests.stack.tailnet.matrix"
    assert all(document.count(f"<!-- {name} -->\n| ") == 1 for name in matrix.tables())
