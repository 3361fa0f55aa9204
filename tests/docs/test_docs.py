"""The documentation says what the program does: programs, commands and configurations run, pages are complete, defaults are those of
the program.

Fenced blocks are marked in their first line:
    ```cpp file=PATH          the text of that file
    ```text output-of=NAME    what the program $BILEVEL_<NAME> prints
    ```toml complete          a whole configuration: `bilevel hypergrad` takes it (or command=run); file=NAME keeps it for the page's commands
    ```sh                     commands of `bilevel`, run in order, all of a page in one folder; no-run: only their form is checked
"""
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("BILEVEL_BINARY", str(ROOT / "build" / "bilevel"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


class Block:
    def __init__(self, info, text):
        words = info.split()
        self.language = words[0] if words else ""
        self.flags = {word for word in words[1:] if "=" not in word}
        self.values = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        self.text = text


def blocks(page):
    return [Block(*found) for found in re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.M | re.S)]


def bilevel(*arguments, cwd, code=0):
    done = subprocess.run([BINARY, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, timeout=300)
    assert done.returncode == code, f"bilevel {shlex.join(map(str, arguments))}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def commands(block):
    return [line for line in block.text.splitlines() if line.strip() and not line.startswith("#")]


def help_of(*command, cwd=ROOT):
    return bilevel(*command, "--help", cwd=cwd)


def option_names(text):
    return set(re.findall(r"(?<![\w-])(--[a-z][a-z-]*)", text))


def subcommands():
    listed = help_of().split("Subcommands:")[1].split("Example:")[0]
    return re.findall(r"^  ([a-z]+)", listed, re.M)


# --- what runs ---


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_configurations_of_a_page(name, tmp_path):
    for block in blocks(ROOT / name):
        if block.language == "toml":
            tomllib.loads(block.text)
            if "complete" not in block.flags:
                continue
            path = tmp_path / block.values.get("file", "config.toml")
            path.write_text(block.text)
            if block.values.get("command") == "run":
                bilevel("run", path, "--out", tmp_path / (path.stem + "-as-shown"), cwd=tmp_path)
            else:
                bilevel("hypergrad", path, cwd=tmp_path)
        elif block.language == "sh":
            for line in commands(block):
                if "no-run" in block.flags:
                    words = shlex.split(line)
                    if words[0] == "bilevel":
                        assert option_names(line) <= option_names(help_of(words[1])), line
                    continue
                assert line.startswith("bilevel "), f"mark it no-run, or let it be a command of bilevel: {line}"
                shell = f'bilevel() {{ {shlex.quote(BINARY)} "$@"; }}; {line}'
                done = subprocess.run(["bash", "-ec", shell], cwd=tmp_path, env=ENVIRONMENT, text=True, capture_output=True, timeout=300)
                assert done.returncode == 0, f"{line}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_there_is_something_to_run():
    run = [line for page in PAGES for block in blocks(page) if block.language == "sh" and "no-run" not in block.flags
           for line in commands(block)]
    assert len(run) >= 15
    assert sum(block.language == "toml" and "complete" in block.flags for page in PAGES for block in blocks(page)) >= 5


def test_the_first_program_fits_on_a_page():
    program = next(block for block in blocks(ROOT / "docs" / "index.md") if block.language == "cpp")
    assert len(program.text.splitlines()) <= 40


@pytest.mark.parametrize("page", ["docs/index.md", "docs/optimality-maps.md"])
def test_a_program_is_its_file_and_prints_what_is_shown(page):
    shown = blocks(ROOT / page)
    program = next(block for block in shown if block.language == "cpp")
    assert program.text == (ROOT / program.values["file"]).read_text()
    output = next(block for block in shown if "output-of" in block.values)
    name = output.values["output-of"]
    assert name == pathlib.Path(program.values["file"]).stem
    binary = os.environ.get(f"BILEVEL_{name.upper()}", str(ROOT / "build" / "tests" / name))
    printed = subprocess.run([binary], env=ENVIRONMENT, text=True, capture_output=True, timeout=120, check=True)
    assert printed.stdout == output.text


# --- what is complete ---


def listed(kind):
    return [line.split()[0] for line in bilevel("list", kind, cwd=ROOT).splitlines() if line.strip()]


@pytest.mark.parametrize("kind", ["estimators", "solvers", "rules", "algorithms"])
def test_every_algorithm_has_a_page(kind):
    names = listed(kind)
    assert names
    index = (ROOT / "docs" / "index.md").read_text()
    for name in names:
        page = ROOT / "docs" / "algorithms" / f"{name}.md"
        assert page.exists(), f"{kind}: {name} has no page {page}"
        assert f"(algorithms/{name}.md)" in index, f"docs/index.md does not lead to {name}"


def test_every_task_has_a_page():
    for name in listed("tasks"):
        page = ROOT / "docs" / ("reweighting.md" if name == "reweight" else f"tasks/{name}.md")
        assert page.exists(), f"the task {name} has no page {page}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "algorithms").glob("*.md")), ids=lambda page: page.stem)
def test_an_algorithms_page_says_formula_cost_memory_and_source(page):
    text = page.read_text()
    for heading in ("Formula", "Cost", "Memory", "Options", "Source"):
        section = re.search(rf"^## {heading}\n(.+?)(?=^## |\Z)", text, re.M | re.S)
        assert section and section.group(1).strip(), f"{page.name}: nothing under {heading}"
    for code in re.findall(r"`((?:bilevel|tasks)/[\w/.]+)`", text):
        assert (ROOT / code).exists(), f"{page.name} names {code}, which is not there"


def test_every_command_and_option_is_described():
    page = (ROOT / "docs" / "command-line.md").read_text()
    headings = {word for line in re.findall(r"^## (.+)$", page, re.M) for word in re.split(r"[,\s]+", line)}
    names = subcommands()
    assert {"run", "reweight", "tune"} <= set(names)
    assert set(names) <= headings
    described, known = option_names(page), set()
    for name in names:
        options = option_names(help_of(name)) - {"--help"}
        known |= options
        assert options <= described, f"{name}: {sorted(options - described)}"
    assert described - known <= {"--help", "--version"}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name}: {target}"
        if anchor:
            headings = [re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-")
                        for line in re.findall(r"^#+ (.+)$", file.read_text(), re.M)]
            assert anchor in headings, f"{name}: {target}"


# --- defaults ---


def toml_values(cell):
    for text in re.findall(r"`([^`]+)`", cell):
        try:
            yield tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            pass  # a key that the words mention


def documented_defaults():
    """Key → the values that docs/configuration.md gives; none where it gives words."""
    found = {}
    for line in (ROOT / "docs" / "configuration.md").read_text().splitlines():
        cells = line.split(" | ")
        if line.startswith("| `") and len(cells) >= 3:
            for key in re.findall(r"`([^`]+)`", cells[0]):
                found.setdefault(key, []).extend(toml_values(cells[1]))
    return found


def flat(table, prefix=""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


DATA = '[data]\ninner = { builtin = "digits", count = 40 }\nouter = { builtin = "digits", first = 40, count = 40 }\n'
L2 = "[problem.hyperparameters]\nl2 = {}\n"
BOXED = "[problem.hyperparameters]\nl2 = { min = -9.0, max = 1.0 }\n"
CASES = {
    "nothing": "[problem]\n" + L2 + DATA,
    "weights": "[problem]\n[problem.hyperparameters]\nsample_weight = {}\n" + DATA,
    "step size": '[problem]\n[problem.hyperparameters]\nstep_size = {}\n[hypergradient]\nestimator = "unrolled"\n' + DATA,
    "log step size": '[problem]\n[problem.hyperparameters]\nstep_size = { param = "log" }\n[hypergradient]\nestimator = "one-step"\n' + DATA,
    "neumann": "[problem]\n" + L2 + DATA + '[hypergradient]\nsolver = "neumann"\n',
    "dense": "[problem]\n" + L2 + DATA + '[hypergradient]\nsolver = "dense"\ndamping = 0.1\n',
    "cold": "[problem]\n" + L2 + DATA + '[inner]\nstart = "cold"\n',
    "adam": "[problem]\n" + L2 + DATA + '[inner]\nrule = "adam"\n',
    "adamw": "[problem]\n" + L2 + DATA + '[inner]\nrule = "adamw"\n[hypergradient]\nestimator = "unrolled"\n',
    "lbfgs": "[problem]\n" + L2 + DATA + '[inner]\nsolver = "lbfgs"\n',
    "newton-cg": "[problem]\n" + L2 + DATA + '[inner]\nsolver = "newton-cg"\n',
    "closed-form": '[problem]\nloss = "squared"\n' + L2 + DATA + '[inner]\nsolver = "closed-form"\n',
    "prox-newton": "[problem]\n[problem.hyperparameters]\nl1 = { init = -5.0 }\n" + DATA + '[inner]\nsolver = "prox-newton"\n',
    "prox": "[problem]\n[problem.hyperparameters]\nl1 = { init = -5.0 }\n" + DATA + '[inner]\nsolver = "prox"\n',
    "projected-gradient": "[problem]\n" + L2 + DATA + '[inner]\nsolver = "projected-gradient"\n',
    "rmsprop": "[problem]\n" + L2 + DATA + '[inner]\nrule = "rmsprop"\nschedule = "cosine"\n',
    "adagrad": "[problem]\n" + L2 + DATA + '[inner]\nrule = "adagrad"\nschedule = "linear"\n',
    "adadelta": "[problem]\n" + L2 + DATA + '[inner]\nrule = "adadelta"\nschedule = "step"\n',
    "adamax": "[problem]\n" + L2 + DATA + '[inner]\nrule = "adamax"\nschedule = "warmup-cosine"\n',
    "learned rule": '[problem]\n[problem.hyperparameters]\nstep_size = { per = "step" }\nmomentum = { per = "layer" }\nweight_decay = {}\n'
                    '[hypergradient]\nestimator = "unrolled"\n' + DATA,
    "outer sgd": "[problem]\n" + L2 + DATA + '[outer]\nrule = "sgd"\n',
    "outer exponentiated gradient": "[problem]\n[problem.hyperparameters]\n"
                                    'sample_weight = { param = "identity", constraint = "simplex" }\n' + DATA
                                    + '[outer]\nrule = "exponentiated-gradient"\n',
    "outer momentum": "[problem]\n" + L2 + DATA + '[outer]\nrule = "momentum"\n',
    "soba": "[problem]\n" + L2 + DATA + '[run]\nalgorithm = "soba"\n',
    "saba": "[problem]\n" + L2 + DATA + '[run]\nalgorithm = "saba"\n',
    "srba": "[problem]\n" + L2 + DATA + '[run]\nalgorithm = "srba"\n',
    "bome": "[problem]\n" + L2 + DATA + '[run]\nalgorithm = "bome"\n',
    "ma-soba": "[problem]\n" + L2 + DATA + '[run]\nalgorithm = "ma-soba"\n',
    "hpm": "[problem]\n" + BOXED + DATA + '[outer.population]\nmembers = 2\n[run]\nalgorithm = "hpm"\n',
    "pbt": "[problem]\n" + BOXED + DATA + '[outer.population]\nmembers = 2\n[run]\nalgorithm = "pbt"\n',
    "random-search": "[problem]\n" + BOXED + DATA + '[inner]\nsteps = 1\n[run]\nalgorithm = "random-search"\n',
    "mlp": '[problem]\nmodel = "mlp"\n' + L2 + DATA,
    "cnn": '[problem]\nmodel = "cnn"\n' + L2 + DATA,
    "tune": '[problem]\ntask = "tune"\n[data]\nbuiltin = "digits"\nsamples = 200\n',
    "tune mlp": '[problem]\ntask = "tune"\nmodel = "mlp"\n[data]\nbuiltin = "digits"\nsamples = 60\n[tune]\nupdates = 5\nfolds = 2\n',
    "reweight": '[problem]\ntask = "reweight"\n[data]\nbuiltin = "digits"\n',
    "reweight mlp": '[problem]\ntask = "reweight"\nmodel = "mlp"\n[data]\nbuiltin = "digits"\nsamples = 60\ntrusted_samples = 20\n[reweight]\nsteps = 1\nfolds = 2\n',
}
# These depend on the machine or on other keys, in words of the page.
IN_WORDS = {"run.threads", "data.builtin", "data.samples", "data.trusted_samples", "hypergradient.warm_start", "inner.init",
            "problem.hyperparameters.step_size.init", "problem.hyperparameters.momentum.init",
            "problem.hyperparameters.weight_decay.init"}


@pytest.mark.parametrize("case", CASES)
def test_defaults_are_as_documented(case, tmp_path):
    documented = documented_defaults()
    (tmp_path / "c.toml").write_text(CASES[case])
    settings = [] if case.startswith(("reweight", "tune")) else ["--set", "outer.steps=0"]
    if settings and case not in ("closed-form", "soba", "saba", "ma-soba", "srba"):
        settings += ["--set", "inner.steps=1"]
    done = subprocess.run([BINARY, "run", "c.toml", "--out", "out", *settings], cwd=tmp_path, env=ENVIRONMENT, text=True,
                          capture_output=True, timeout=300)
    assert done.returncode in (0, 1), done.stderr  # one inner step is too few for an OK
    given = {key for key, _ in flat(tomllib.loads(CASES[case]))} | {"inner.steps", "outer.steps"}
    complete = dict(flat(tomllib.loads((tmp_path / "out" / "config.toml").read_text())))
    assert len(complete) > 15
    for key, value in complete.items():
        known = re.sub(r"^data\.(inner|outer|test)\.", "data.*.", key)
        if key in given and key.endswith((".min", ".max", ".constraint")):
            continue  # of any hyperparameter: in words below its table
        assert known in documented, f"{key} is not in docs/configuration.md"
        if key in given or known in IN_WORDS:
            continue
        assert value in documented[known], f"{key} = {value!r}, documented: {documented[known]}"


def test_nothing_is_documented_that_is_not_there():
    known = set()
    sources = "".join(path.read_text() for folder in ("bilevel", "tasks") for path in (ROOT / folder).rglob("*.cpp"))
    for key in documented_defaults():
        name = key.split(".")[-1]
        assert f'"{name}"' in sources, f"no source reads {key}"
        known.add(key)
    assert len(known) > 60


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-q"]))


def test_the_tables_for_choosing_are_those_of_the_study():
    subprocess.run([sys.executable, ROOT / "studies/baselines/choosing.py", "--check"], check=True)


def test_the_tests_against_known_defects_exist():
    page = (ROOT / "docs" / "known-defects.md").read_text()
    sources = "\n".join(path.read_text() for folder in ("bilevel", "tasks", "tests") for path in (ROOT / folder).rglob("*_test.cpp"))
    named = re.findall(r"`([A-Z]\w+)\.([A-Z]\w+)`", page)
    assert len(named) > 10
    for suite, name in named:
        assert re.search(rf"TEST(_P|_F)?\({suite}, {name}\)", sources), f"{suite}.{name}"
    python = "\n".join(path.read_text() for folder in ("python", "peers") for path in (ROOT / "tests" / folder).glob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", page):
        assert f"def {name}(" in python, name
