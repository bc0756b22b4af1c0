"""Scene files as people write and download them: read, or refused with their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlarl.config.suites import bddl_files
from vlarl_env.simulators.libero.bddl_check import check_bddl
from vlarl_env.simulators.libero.bddl_reader import BddlError, read_bddl

SCENE = """(define (problem LIBERO_Tabletop_Manipulation)
  (:domain robosuite)
  (:language put the bowl on the plate)
  (:regions
    (bowl_region (:target main_table) (:ranges ((-0.1 -0.1 0.1 0.1))) (:yaw_rotation ((0.0 pi/2))))
    (stove_region (:target main_table) (:ranges ((-0.3 -0.3 -0.2 -0.2))))
    (cook_region (:target flat_stove_1))
    (never_used (:target bowl_drainer_1))
  )
  (:fixtures main_table - table
             flat_stove_1 - flat_stove)
  (:objects akita_black_bowl_1 akita_black_bowl_2 - akita_black_bowl
            plate_1 - plate)
  (:obj_of_interest plate_1)
  (:init
    (On akita_black_bowl_1 main_table_bowl_region)
    (On akita_black_bowl_2 flat_stove_1_cook_region)
    (On plate_1 main_table_bowl_region)
    (On flat_stove_1 main_table_stove_region)
    (Turnoff flat_stove_1))
  (:goal (And (On akita_black_bowl_1 plate_1) (Turnon flat_stove_1)))
)
"""
LANGUAGE = "(:language put the bowl on the plate)"
GOAL = "(And (On akita_black_bowl_1 plate_1) (Turnon flat_stove_1))"


def written(folder: Path, content: str | bytes) -> Path:
    file = folder / "pick.bddl"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.parametrize(
    ("content", "instruction"),
    [
        (SCENE, "put the bowl on the plate"),
        (b"\xef\xbb\xbf" + SCENE.replace("\n", "\r\n").encode(), "put the bowl on the plate"),
        (SCENE.encode("utf-16"), "put the bowl on the plate"),
        (SCENE.replace("\n", "\r"), "put the bowl on the plate"),
        (SCENE.replace(LANGUAGE, "(:language 把碗放到盘子上)"), "把碗放到盘子上"),
        (SCENE.replace(LANGUAGE, "(:language lift it (the black one))"), "lift it (the black one)"),
        (SCENE.replace(LANGUAGE, "(:language\n  Lift\n\tit )"), "Lift it"),
        (SCENE.replace(LANGUAGE, "; (:language old)\n(:LANGUAGE new ; or so\n)"), "new"),
        (SCENE.replace(GOAL, "(AND (ON AKITA_BLACK_BOWL_1 Plate_1))"), "put the bowl on the plate"),
        (SCENE.replace(GOAL, "(ReachedAbove plate_1)"), "put the bowl on the plate"),
    ],
    ids=[
        "plain",
        "mark-crlf",
        "utf16",
        "cr",
        "chinese",
        "nested",
        "lines",
        "comment",
        "upper",
        "1",
    ],
)
def test_what_means_something_is_read(
    tmp_path: Path, content: str | bytes, instruction: str
) -> None:
    assert check_bddl(written(tmp_path, content)) == instruction


@pytest.mark.parametrize(
    ("old", "new", "line", "text"),
    [
        (LANGUAGE, "", 1, "no (:language ...)"),
        (LANGUAGE, "(:language )", 3, "is empty"),
        (LANGUAGE, "(:langauge put it)", 1, "no (:language ...)"),
        ("(:domain robosuite)", "(:domane robosuite)", 2, "did you mean :domain?"),
        ("LIBERO_Tabletop_Manipulation", "My_Lab", 1, "unknown problem my_lab; there are libero_"),
        ("- plate", "- my_mug", 13, "unknown kind of object my_mug"),
        ("- plate", "- palte", 13, "unknown kind of object palte; did you mean plate?"),
        ("- plate", "- cherries", 13, "unknown kind of object cherries"),  # It has no files.
        ("- plate", "", 13, "plate_1 has no kind"),
        ("- plate", "- akita_black_bowl", 13, "kind akita_black_bowl is here twice"),
        ("plate_1 - plate", "plate_1 plate_1 - plate", 13, "plate_1 is here twice"),
        ("flat_stove_1 - flat_stove)", ")", 7, "unknown thing flat_stove_1"),
        ("-0.1 -0.1 0.1 0.1", "-0.1 -0.1 0.1", 5, ":ranges holds lists of 4 numbers"),
        ("-0.1 -0.1 0.1 0.1", "-0.1 -0.1 nan 0.1", 5, ":ranges holds lists of 4 numbers"),
        ("-0.1 -0.1 0.1 0.1", "0.1 -0.1 -0.1 0.1", 5, "ends before it begins"),
        ("(:ranges ((-0.1 -0.1 0.1 0.1)))", "", 5, "region bowl_region needs (:ranges"),
        ("0.0 pi/2", "0.0 exit()", 5, ":yaw_rotation holds angles"),
        ("0.0 pi/2", "0.0 quit", 5, ":yaw_rotation holds angles"),
        ("(cook_region", "(cok_region", 17, "did you mean flat_stove_1_cok_region?"),
        ("cook_region", "oven_region", 7, "unknown place of a flat_stove oven_region"),
        ("(On plate_1 main_table_bowl_region)", "", 15, "plate_1 is placed nowhere"),
        (
            "(On plate_1 main",
            "(On akita_black_bowl_1 main",
            18,
            "akita_black_bowl_1 is placed twice",
        ),
        ("plate_1 main_table_bowl_region", "plate_1 main_table", 18, "unknown place main_table"),
        ("(Turnoff flat_stove_1)", "(Turnoff plate_1)", 20, "a plate can't be the subject"),
        ("(Turnoff flat_stove_1)", "(Near plate_1)", 20, "unknown fact of :init near"),
        (GOAL, "(And (On akita_black_bowl_7 plate_1))", 21, "unknown thing akita_black_bowl_7"),
        (GOAL, "(And (On akita_black_bowl_1 main_table))", 21, "can't be about main_table"),
        (GOAL, "(And (Onto akita_black_bowl_1 plate_1))", 21, "unknown predicate of a goal onto"),
        (GOAL, "(And (On akita_black_bowl_1))", 21, "(on ...) takes two names"),
        (GOAL, "(And (Open akita_black_bowl_1))", 21, "a akita_black_bowl can't be the subject"),
        (GOAL, "(Or (On akita_black_bowl_1 plate_1))", 21, "unknown predicate of a goal or"),
        (GOAL, "(And)", 21, "the goal is empty"),
        (f"(:goal {GOAL})", "", 1, "there is no (:goal ...)"),
        (f"(:goal {GOAL})", f"(:goal {GOAL}))", 22, "the definition has ended before"),
        (f"(:goal {GOAL})", f"(:goal {GOAL}", 1, "never closed"),
        (SCENE, "", 1, "the file is empty"),
        (SCENE, "pick up the bowl", 1, "begins with (define"),
    ],
)
def test_what_means_nothing_is_refused_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, text: str
) -> None:
    file = written(tmp_path, SCENE.replace(old, new))
    with pytest.raises(BddlError) as refused:
        check_bddl(file)
    assert str(refused.value).startswith(f"{file}:{line}: ")
    assert text in str(refused.value)


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16-le"])
def test_an_encoding_that_cannot_be_told_is_refused(tmp_path: Path, encoding: str) -> None:
    scene = SCENE.replace(LANGUAGE, "(:language 把碗放到盘子上)")
    with pytest.raises(BddlError, match=r"pick\.bddl:[13]: this isn't .*save the file as UTF-8"):
        check_bddl(written(tmp_path, scene.encode(encoding)))


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    for ending in ("\n", "\r\n", "\r"):
        read = read_bddl(written(tmp_path, SCENE.replace("\n", ending)))
        assert [group.line for group in read.groups] == [1, 2, 3, 4, 10, 12, 14, 15, 21]


def test_a_folder_is_searched_as_people_fill_it(tmp_path: Path) -> None:
    for name in ("b.bddl", "A FILE.BDDL", "._b.bddl", ".hidden.bddl", "notes.txt", "b.bddl~"):
        (tmp_path / name).write_text(SCENE)
    (tmp_path / "folder.bddl").mkdir()
    assert [file.name for file in bddl_files(tmp_path)] == ["A FILE.BDDL", "b.bddl"]
