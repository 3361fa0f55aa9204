"""The wheel, as a stranger meets it: built from a source distribution, installed into a fresh environment that holds torch, numpy and
what they need, used there without any variable, and removed again.

The sources are unpacked below build/wheel so that each path, seen from its own build folder, is what it is in the main build: the
compiler cache then knows every file, and nothing but links is done twice.
"""

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("BILEVEL_BUILD", ROOT / "build"))
TORCH = pathlib.Path(os.environ["BILEVEL_TORCH"] if "BILEVEL_TORCH" in os.environ else (BUILD / "torch.path").read_text().strip())
TOOLS = pathlib.Path(sys.executable).parent  # cmake and ninja
BARE = {"PATH": "/usr/bin:/bin", "HOME": str(BUILD / "wheel"), "LANG": "C.UTF-8"}


def run(*command, env=BARE, cwd=BUILD / "wheel", code=0):
    done = subprocess.run([str(word) for word in command], env=env, cwd=cwd, text=True, capture_output=True, timeout=1500)
    assert done.returncode == code, f"{command}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def work():
    folder = BUILD / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def wheel(work):
    """pip wheel --no-build-isolation, on an unpacked source distribution."""
    make = f"from scikit_build_core.build import build_sdist; build_sdist({str(work)!r})"
    run(sys.executable, "-c", make, cwd=ROOT, env=os.environ)
    (archive,) = work.glob("*.tar.gz")
    shutil.unpack_archive(archive, work)
    sources = work / archive.name.removesuffix(".tar.gz")
    (sources / "build").mkdir()
    for name in ("venv", "deps"):
        if (ROOT / "build" / name).exists():
            (sources / "build" / name).symlink_to((ROOT / "build" / name).resolve())
    torch = sources / TORCH.relative_to(ROOT) if TORCH.is_relative_to(ROOT / "build") else TORCH
    env = {**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", work]
    run(*pip, sources, "--config-settings", "build-dir=build", "--config-settings", f"cmake.define.LibTorch_ROOT={torch}", env=env)
    (built,) = work.glob("*.whl")
    return built


def needed_by(names):
    """The installed distributions of these names and of all that they require here."""
    found, queue = {}, list(names)
    while queue:
        name = queue.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another system, or an extra
            continue
        if distribution.name not in found:
            found[distribution.name] = distribution
            queue += [re.match(r"[\w.-]+", line).group() for line in distribution.requires or [] if "extra ==" not in line]
    return found.values()


class Environment:
    """A virtual environment that shares nothing with another one: torch and numpy lie in it as files of its own (hard links, where
    the file system has them), as pip would have put them there."""

    def __init__(self, folder):
        self.folder = folder
        run(sys.executable, "-m", "venv", folder)
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python3.*/site-packages")
        sys.path.insert(0, str(TORCH.parent))
        for distribution in needed_by(["torch", "numpy"]):
            for file in distribution.files:
                source, target = pathlib.Path(distribution.locate_file(file)), self.site / file
                if ".." in file.parts or "__pycache__" in file.parts or not source.exists():  # its commands are not needed
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(source, target)
                except OSError:
                    shutil.copy2(source, target)

    def files(self, word):
        return sorted(str(path) for path in self.folder.rglob(f"*{word}*"))


@pytest.fixture(scope="module")
def fresh(work):
    return Environment(work / "environment")


@pytest.fixture(scope="module")
def installed(fresh, wheel):
    run(fresh.python, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", wheel)
    return fresh


def test_the_wheel_holds_what_it_should(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("__init__.py", "py.typed", "_engine.pyi", "_built.py", "bin/bilevel", "include/bilevel/run/minimize.h",
                 "lib/libbilevel_core.a", "lib/libhwy.so.1", "lib/cmake/bilevel/bilevelConfig.cmake"):
        assert f"bilevel/{name}" in names
    assert not [name for name in names if name.endswith((".cpp", "_test.h", ".o")) or name.startswith(("tests/", "docs/"))]


def test_it_requires_the_torch_that_it_was_built_against(installed):
    ask = "import importlib.metadata as m; print(m.requires('bilevel'))"
    release = re.search(r"__version__ *= *'(\d+\.\d+)", (TORCH / "version.py").read_text()).group(1)
    assert f"torch=={release}.*" in run(installed.python, "-c", ask)


def test_the_module_works(installed, work):
    program = work / "program.py"
    program.write_text(
        """
import pathlib, torch, bilevel
t = torch.linspace(0, 1, 5, dtype=torch.double)
inner = lambda x, y: 0.5 * ((y - t).square() + x.exp() * y.square()).sum()
outer = lambda x, y: 0.5 * (y - 0.7 * t).square().sum()  # the best factor 1/(1 + e^x) is 0.7
run = bilevel.minimize(inner, outer, torch.zeros(1, dtype=torch.double), torch.zeros(5, dtype=torch.double), steps=200)
print("factor", round(1 / (1 + run.x.exp().item()), 3), run.status)
assert pathlib.Path(bilevel.__file__).parents[1] == pathlib.Path(torch.__file__).parents[1]
"""
    )
    assert "factor 0.7 OK" in run(installed.python, "-I", program)


def test_the_command_works(installed, work):
    command = installed.folder / "bin" / "bilevel"
    assert "torch" in run(command, "--version")
    assert run(installed.python, "-m", "bilevel", "--version") == run(command, "--version")
    text = run(command, "selftest")
    assert re.search(r"(\d+) of \1 checks passed", text), text
    (work / "ridge.toml").write_text(run(command, "new", "supervised"))
    run(command, "run", work / "ridge.toml", "--out", work / "ridge", "--set", "outer.steps=2")
    ask = f"import bilevel; print(bilevel.load_run({str(work / 'ridge')!r}).summary['steps'])"
    assert run(installed.python, "-c", ask).strip() == "2"


def test_a_cpp_project_builds_against_it(installed, work):
    """The project of tests/install, with nothing said but where bilevel is; and with the environment moved."""
    prefix = run(installed.python, "-c", "import bilevel; print(bilevel.cmake_prefix_path)").strip()
    assert pathlib.Path(prefix) == installed.site / "bilevel"
    env = {**BARE, "PATH": f"{TOOLS}:/usr/bin:/bin"}
    configure = ["cmake", "-G", "Ninja", "-S", ROOT / "tests" / "install", "-B", work / "project", f"-DCMAKE_PREFIX_PATH={prefix}"]
    run(*configure, "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF", env=env)
    cache = (work / "project" / "CMakeCache.txt").read_text()
    for library in ("ZLIB", "CSV", "HIGHWAY"):  # the wheel's own, and no Debian package's
        assert re.search(rf"bilevel_{library}_LIBRARY:FILEPATH={re.escape(prefix)}/", cache), library
    run("cmake", "--build", work / "project", env=env)
    assert "expected" in run(work / "project" / "example")


def test_another_torch_is_refused_in_words(installed):
    """Module and command alike: not by an unknown symbol, and not by a crash."""
    version = installed.site / "torch" / "version.py"
    text = version.read_text()
    version.unlink()  # never written through: it may be a link to another environment's
    version.write_text(re.sub(r"__version__ *= *'[^']*'", "__version__ = '2.10.1+cpu'", text))
    try:
        for command in ([installed.python, "-c", "import bilevel"], [installed.folder / "bin" / "bilevel", "--version"]):
            said = run(*command, code=1)
            assert re.search(r"ImportError: bilevel was built for torch 2\.\d+\.\d+, and this is torch 2\.10\.1\+cpu\.", said), said
            assert "pip install" in said
    finally:
        version.write_text(text)


def test_uninstalling_leaves_nothing(installed):  # the last one
    assert installed.files("bilevel")
    run(installed.python, "-m", "pip", "--disable-pip-version-check", "uninstall", "-y", "bilevel")
    assert installed.files("bilevel") == []
