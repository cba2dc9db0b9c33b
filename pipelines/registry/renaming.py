"""Source code moved below another package: its imports of our packages get one more name in front.

    from pipelines.media import decode     ->  from xkd_1a2b3c4d.pipelines.media import decode
    "pipelines.media.decoder.process"      ->  "xkd_1a2b3c4d.pipelines.media.decoder.process"

The rest of a file stays as it is to the byte, so that lines in tracebacks are those of the
original. Which text is an import and which a string is read from the syntax tree.
"""

import ast
import re
from collections.abc import Iterator, Set
from functools import lru_cache
from itertools import accumulate

_FROM = re.compile(rb"from(?:\s|\\\r?\n)+(?=\w)")


def renamed(source: bytes, package: str, modules: Set[str]) -> bytes:
    r"""The source of a module that imports `modules` from below `package`.

    Args:
        source: In UTF-8.
        package: The new first name.
        modules: Full names of the modules that move; their parents move too.

    >>> renamed(b"from one.two import x\nprint('one.two', one)\n", "new", {"one.two"})
    b"from new.one.two import x\nprint('new.one.two', one)\n"

    Raises:
        ValueError: If it names a module in a way that cannot be renamed; it says the line.
    """
    for position in _positions(source, frozenset(modules)):
        source = source[:position] + package.encode() + b"." + source[position:]
    return source


@lru_cache(maxsize=512)
def _positions(source: bytes, modules: frozenset[str]) -> tuple[int, ...]:
    """The same for every package: the code of a second encoder is not parsed again."""
    return tuple(sorted(_insertions(source, modules), reverse=True))


def _insertions(source: bytes, modules: Set[str]) -> Iterator[int]:
    """The bytes before which the package's name goes."""
    moved = {_first(module) for module in modules}
    starts = [0, *accumulate(len(line) for line in source.splitlines(keepends=True))]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            if _first(node.module) in moved:
                found = _FROM.match(source, starts[node.lineno - 1] + node.col_offset)
                assert found is not None
                yield found.end()
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _first(alias.name) in moved:
                    _check_alias(alias)
                    yield starts[alias.lineno - 1] + alias.col_offset
        elif isinstance(node, ast.Constant) and node.value in modules:
            yield starts[node.lineno - 1] + node.col_offset + _text_offset(source, node)


def _first(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _check_alias(alias: ast.alias) -> None:
    """Refuses `import one.two`, after which the code says `one.two.x`."""
    if alias.asname is None:
        raise ValueError(
            f"line {alias.lineno}: `import {alias.name}` must be `from ... import ...` or have "
            "`as ...`, because this code travels with a model under another name"
        )


def _text_offset(source: bytes, node: ast.Constant) -> int:
    """How many bytes the prefix and quotes of a string take."""
    assert isinstance(node.value, str)
    literal = ast.get_source_segment(source.decode(), node) or ""
    at = literal.encode().find(node.value.encode())
    if at < 0 or literal[0] not in "\"'rR":
        raise ValueError(
            f"line {node.lineno}: {node.value!r} must be one plain string, because this code "
            "travels with a model under another name"
        )
    return at
