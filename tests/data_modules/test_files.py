"""Lists and names, well-meant and hostile."""

import tracemalloc
from pathlib import Path

import pytest

from data_modules import files
from data_modules.files import bounded_lines, has_control_characters, person_problem


def test_lines_have_numbers(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"one\r\ntwo \n\nZo\xc3\xab\xff")
    assert list(bounded_lines(file)) == [(1, "one"), (2, "two "), (3, ""), (4, "Zo\u00eb\ufffd")]
    file.write_bytes(b"")
    assert list(bounded_lines(file)) == []


def test_a_line_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("one\n")
    with file.open("r+b") as content:
        content.truncate(2**34)
    lines = bounded_lines(file)
    assert next(lines) == (1, "one")
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"{file}, line 2: more than 65,536 characters, expected fewer"):
        next(lines)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    file.write_text("n" * 65_535 + "\n" + "n" * 65_536 + "\n")
    assert next(bounded_lines(file)) == (1, "n" * 65_535)
    with pytest.raises(ValueError, match="line 2"):
        list(bounded_lines(file))


@pytest.mark.parametrize(("limit", "value"), [("MAX_LINES", 3), ("MAX_TEXT", 11)])
def test_absurdly_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    monkeypatch.setattr(files, limit, value)
    file = tmp_path / "list.txt"
    file.write_text("one\n" * 2)
    assert len(list(bounded_lines(file))) == 2
    file.write_text("one\n" * 4)
    with pytest.raises(ValueError, match=rf"{file}, line [34]: expected [\d,]+ lines and [\d,]+ characters or fewer"):
        list(bounded_lines(file))


@pytest.mark.parametrize("name", ["Ann", "Zo\u00eb O'Hara-Smith Jr.", "\u674e", "n" * 100, "..."])
def test_names(name: str) -> None:
    assert person_problem(name) is None


@pytest.mark.parametrize("name", ["", "n" * 10**6, "A\nB", "A\0", "\x1b[2J", "A\u2028B", "a/b", "a\\b", ".."])
def test_what_is_no_name(name: str) -> None:
    problem = person_problem(name)
    assert problem is not None
    assert problem.isprintable()
    assert len(problem) < 200
    assert has_control_characters(name) == (not name.isprintable())
