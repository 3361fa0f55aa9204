"""The programs of docs/migration.md, the peers' in their environment and ours here, come to the same result."""

import numpy as np
import pytest

import pages
from conftest import HERE, run_with_peers

PROGRAMS = pages.programs()
PEERS = [(task, library) for task, programs in PROGRAMS.items() for library in programs if library not in ("data", "bilevel")]


def ours(task, **replaced):
    """The result of our program, with parts of its text replaced."""
    text = PROGRAMS[task]["bilevel"]
    for old, new in replaced.values():
        assert old in text
        text = text.replace(old, new)
    namespace = {}
    exec(PROGRAMS[task]["data"], namespace)
    exec(text, namespace)
    return namespace["result"].numpy()


START = {}
exec(PROGRAMS["maml"]["data"], START)
START = {"reweighting": 0.0, "maml": np.concatenate([p.reshape(-1) for p in START["start"].values()]), "ridge": -2.0}


@pytest.mark.parametrize("task, library", PEERS)
def test_the_result_is_ours(task, library, tmp_path):
    run_with_peers("-W", "ignore", HERE / "run_program.py", task, library, tmp_path / "result.npy")
    theirs = np.load(tmp_path / "result.npy")
    if (task, library) == ("reweighting", "betty"):  # another estimator, as the page says; it takes differences
        mine = ours(task, estimator=('"unrolled"', '"identity"'))
        assert np.linalg.norm(mine - theirs) <= 1e-4 * np.linalg.norm(theirs)
        assert np.linalg.norm(ours(task) - theirs) > 1e-3 * np.linalg.norm(theirs)
        return
    mine = ours(task)
    moved = np.linalg.norm(mine - START[task])
    assert np.linalg.norm(mine - theirs) <= 1e-8 * moved, "what was learned differs"


def test_bettys_iterative_problem_does_not_start():
    """What the page says in place of Betty's MAML."""
    assert "FAILED" in run_with_peers("-W", "ignore", HERE / "iterative_problem.py")


def test_every_program_was_found():
    assert {task: len(programs) for task, programs in PROGRAMS.items()} == {"reweighting": 7, "maml": 6, "ridge": 7}
