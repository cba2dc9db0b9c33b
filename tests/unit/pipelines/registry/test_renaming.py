"""Imports of moved modules get a new first name, and nothing else in a file changes."""

import pytest

from pipelines.registry.renaming import renamed

MODULES = {"one.two", "one.two.three", "other.four"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from one import two", "from new.one import two"),
        ("from one.two import (\n  x,\n  y as z)", "from new.one.two import (\n  x,\n  y as z)"),
        ("from   other.four import x  # from one", "from   new.other.four import x  # from one"),
        ("from \\\n    one.two import x", "from \\\n    new.one.two import x"),
        ("import one.two as x, os", "import new.one.two as x, os"),
        ("import os, other.four as x", "import os, new.other.four as x"),
        ("def f():\n    if x: from one.two import y; return y",
         "def f():\n    if x: from new.one.two import y; return y"),
        ("x = '\xe9'; from one.two import x", "x = '\xe9'; from new.one.two import x"),
        ("run('one.two.three')", "run('new.one.two.three')"),
        ('run(r"""one.two""", "\xe9", "other.four")',
         'run(r"""new.one.two""", "\xe9", "new.other.four")'),
        ("x: 'one.two' = 1\r\nfrom one.two import y\r\n",
         "x: 'new.one.two' = 1\r\nfrom new.one.two import y\r\n"),
    ],
)  # fmt: skip
def test_a_moved_module_gets_a_new_first_name(source, expected):
    assert renamed(source.encode(), "new", MODULES).decode() == expected


@pytest.mark.parametrize(
    "source",
    [
        "from onerous.two import x",
        "import ones",
        "from . import one",
        "from .one import two",
        "import numpy.one as one",
        "one = 3; print(one, one.two)",
        "'one'; 'one.two.'; 'see one.two'; 'one/two'; b'one.two'",
        "# from one.two import x",
        '"""\nfrom one.two import x\n"""',
        "f'{one.two} one.two.three x'",
        "",
    ],
)
def test_nothing_else_changes(source):
    assert renamed(source.encode(), "new", MODULES).decode() == source


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\nimport one.two", r"line 2: `import one\.two` must be `from \.\.\. import"),
        ("import one", r"line 1: `import one` must be"),
        ("x = f'one.two'", r"line 1: 'one\.two' must be one plain string"),
        ("x = 'one.' 'two'", r"line 1: 'one\.two' must be one plain string"),
        ("x = 'one.\\x74wo'", r"line 1: 'one\.two' must be one plain string"),
    ],
)
def test_what_cannot_be_renamed_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        renamed(source.encode(), "new", MODULES)
