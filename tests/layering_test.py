"""The data's way through the house: a folder uses the folders to its left. CMakeLists.txt says which; the includes must agree."""
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
FOLDERS = re.findall(r"^bilevel_folder\((\w+)(?:\s+USES\s+([\w ]+?))?\s*\)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
# What a public header may pull into a user's program, beside the standard library (which has neither slash nor dot).
LIGHT = ("ATen/core/", "c10/")


def path_of(folder):
    return ROOT / "bilevel" / folder if (ROOT / "bilevel" / folder).is_dir() else ROOT / folder


def folder_of(header):
    parts = header.split("/")
    return parts[1] if parts[0] == "bilevel" else parts[0]


def reachable():
    """Each folder with all that it may use, itself included; a folder may only name folders that come before it."""
    reach = {}
    for folder, uses in FOLDERS:
        used = uses.split()
        assert all(name in reach for name in used), f"{folder} uses {used}, which are not all to its left"
        reach[folder] = {folder}.union(*(reach[name] for name in used))
    return reach


def includes(path):
    return [(kind == "<", name) for kind, name in INCLUDE.findall(path.read_text(encoding="utf-8"))]


def test_the_order_of_the_folders_is_that_of_the_design():
    assert [folder for folder, _ in FOLDERS] == [
        "core", "problem", "oracle", "linear", "inner", "hypergrad", "outer", "algorithm", "run", "report", "tasks", "studies"]
    on_disk = {path.name for path in (ROOT / "bilevel").iterdir() if path.is_dir()}
    assert on_disk == {folder for folder, _ in FOLDERS} - {"tasks", "studies"}


def test_no_folder_includes_a_header_to_its_right():
    wrong, seen = [], 0
    for folder, allowed in reachable().items():
        for path in [*path_of(folder).rglob("*.h"), *path_of(folder).rglob("*.cpp")]:
            for system, name in includes(path):
                if system:
                    continue
                seen += 1
                if not (ROOT / name).is_file():
                    wrong.append(f"{path.relative_to(ROOT)}: {name} is not a path from the root of the repository")
                elif folder_of(name) not in allowed:
                    wrong.append(f"{path.relative_to(ROOT)}: {folder} may not use {name}")
    assert seen > 300
    assert not wrong, "\n".join(wrong)


def test_public_headers_are_light():
    headers = [path for path in (ROOT / "bilevel").rglob("*.h") if not re.search(r"_test\.h$|_for_tests\.h$|/test_\w+\.h$", str(path))]
    heavy = [f"{path.relative_to(ROOT)}: <{name}>" for path in headers for system, name in includes(path)
             if system and ("/" in name or "." in name) and not name.startswith(LIGHT)]
    assert len(headers) > 50
    assert not heavy, "\n".join(heavy)


def test_headers_are_included_once():
    missing = [str(path.relative_to(ROOT)) for folder, _ in FOLDERS for path in path_of(folder).rglob("*.h")
               if not path.read_text(encoding="utf-8").lstrip().startswith("#pragma once")]
    assert not missing
