"""`bilevel reproduce`: its files, its exit status, and a few of the studies, others each day.

BILEVEL_STUDIES=all runs all of them, BILEVEL_STUDIES=fds,… those.
"""
import datetime
import json
import os
import re
import subprocess

import pytest

from conftest import BINARY, ENVIRONMENT, ROOT

A_DAY = 3  # at most 15 seconds each


def slugs():
    done = subprocess.run([BINARY, "list", "studies"], env=ENVIRONMENT, text=True, capture_output=True, check=True)
    return [line.split()[0] for line in done.stdout.splitlines()]


def changed():
    """Studies whose files differ from the main branch; none where git cannot say."""
    done = subprocess.run(["git", "diff", "--name-only", "main", "--", "studies"], cwd=ROOT, text=True, capture_output=True)
    return {found.group(1) for line in done.stdout.splitlines() if (found := re.match(r"studies/([^/]+)/", line))}


def chosen():
    known, asked = slugs(), os.environ.get("BILEVEL_STUDIES")
    if asked:
        return known if asked == "all" else asked.split(",")
    day = datetime.date.today().toordinal()
    turn = [known[(day * A_DAY + i) % len(known)] for i in range(len(known))]
    first = [slug for slug in turn if slug in changed()]
    return (first + [slug for slug in turn if slug not in first])[:A_DAY]


@pytest.mark.parametrize("slug", chosen())
def test_a_quick_study_finds_what_it_is_known_to_find(bilevel, slug):
    done = bilevel("reproduce", slug, "--quick", "--json", "--out", "out")  # exit status 0: nothing came out worse
    study, = json.loads(done.stdout)["studies"]
    assert study["slug"] == slug and study["scale"] == "quick"
    judged = [claim for claim in study["claims"] if claim["verdict"] != "not run"]
    assert judged
    for claim in judged:
        assert not claim["unexpected"], claim
        assert claim["values"] and all(isinstance(value, float) for value in claim["values"])
    page = (bilevel.cwd / "out" / slug / "README.md").read_text()
    assert page.count("| confirmed |") == sum(claim["verdict"] == "confirmed" for claim in judged)
    assert (bilevel.cwd / "out" / "index.html").read_text().startswith("<!DOCTYPE html>")
    assert json.loads((bilevel.cwd / "out" / "verdicts.json").read_text()) == json.loads(done.stdout)


@pytest.mark.parametrize("slug", slugs())
def test_a_studys_page_is_that_of_its_claims(slug):
    """The committed README shows each claim of study.toml as it is there, with a verdict of a full run."""
    import tomllib
    study = tomllib.loads((ROOT / "studies" / slug / "study.toml").read_text())
    page = (ROOT / "studies" / slug / "README.md").read_text()
    assert page.startswith(f"# {study['title']}\n") and f"`bilevel reproduce {slug} --full`" in page
    plain = page.replace("\\", "")
    for name, claim in study["claims"].items():
        row = next((line for line in plain.splitlines() if line.startswith(f"| {claim['says']} |")), None)
        assert row, f"{slug}: {name} is not on the page; run `bilevel reproduce {slug} --full`"
        assert claim["paper"] in row and claim["source"] in row
        verdict = row.rstrip(" |").split("|")[-1].strip()
        order = ["not seen here", "partly", "confirmed"]
        assert order.index(verdict) >= order.index(claim.get("known", "confirmed")), f"{slug}: {name} is {verdict} on its page"


def test_misuse_is_told_and_nothing_is_written(bilevel):
    assert 'Did you mean "fds"?' in bilevel("reproduce", "fdss", code=2).stderr
    assert "--all" in bilevel("reproduce", code=2).stderr
    bilevel("reproduce", "fds", "--all", code=2)
    bilevel("reproduce", "fds", "--quick", "--full", code=2)
    assert not list(bilevel.cwd.iterdir())
