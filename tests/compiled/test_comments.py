"""Source code without comments and docstrings."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

import pl_rl
from pl_rl.compiled import compiler, function
from pl_rl.compiled.comments import strip_cpp, strip_python

MODULES = sorted(Path(pl_rl.__file__).parent.glob("compiled/**/*.py"))

PYTHON = '''"""What the module
is for."""

# A reason.
NAME = "# no comment"  # one
"""What a name is for: 'quoted', # and more."""


def f(x):
    """What f gives."""
    return f"{x}#" + '"#"'  # a "sum"


text = """
# stays
"""
'''
CPP = """// A reason.
/* Two
lines */ #include "kernels.h"  // "one"
const char* name = "// no /* comment";

int a = 1 /* one */ + 2;
"""


def test_python_is_left_without_comments_and_docstrings():
    assert strip_python(PYTHON).split("\n") == [
        'NAME = "# no comment"',
        "def f(x):",
        """    return f"{x}#" + '"#"'""",
        'text = """',
        "# stays",
        '"""',
    ]


def test_cpp_is_left_without_comments():
    assert strip_cpp(CPP).split("\n") == [
        ' #include "kernels.h"',
        'const char* name = "// no /* comment";',
        "int a = 1   + 2;",
    ]


def is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_nothing_else_is_taken_away(path):
    """Python's own tokens and syntax tree agree about the sources that are digested."""
    text = path.read_text()
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            number, column = token.start
            lines[number - 1] = lines[number - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if is_docstring(node):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    assert strip_python(text) == "\n".join(line.rstrip() for line in lines if line.strip())


@pytest.fixture
def writers(tmp_path, monkeypatch):
    """Copies of a kernel and of a module that writes C++, which what is described depends on."""
    kernels, generator = tmp_path / "kernels", tmp_path / "generator"
    kernels.mkdir()
    generator.mkdir()
    (kernels / "kernels.h").write_text(CPP)
    (generator / "__init__.py").write_text(PYTHON)
    monkeypatch.setattr(compiler, "KERNELS", kernels)
    monkeypatch.setattr(function.codegen, "__file__", str(generator / "__init__.py"))
    return kernels / "kernels.h", generator / "__init__.py"


def test_words_change_nothing_that_a_run_says_of_its_code(writers):
    described, key = function.describe_machine_code(), function._key("")
    for path in writers:
        path.write_text(path.read_text().replace("A reason.", "Another reason.").replace("What", "That which"))
    assert (function.describe_machine_code(), function._key("")) == (described, key)


@pytest.mark.parametrize(("place", "before", "after"), [(0, "1 /*", "2 /*"), (1, "no comment", "another")])
def test_code_changes_what_a_run_says_of_it(writers, place, before, after):
    described = function.describe_machine_code()
    assert before in writers[place].read_text()
    writers[place].write_text(writers[place].read_text().replace(before, after))
    assert function.describe_machine_code() != described
