"""``python -m bilevel`` and the ``bilevel`` command: the compiled one that is installed with the package.

Under ``torchrun`` with several processes the module itself runs the command, with torch.distributed's process group.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path


def shared() -> int:
    """The command in one of the processes that torchrun has started, which share the samples; the first one writes and prints."""
    import torch
    import torch.distributed as dist

    from bilevel import _engine

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    group = dist.group.WORLD
    assert group is not None
    return _engine.command(["bilevel", *sys.argv[1:]], group.group_name)


def compile_config(arguments: list[str]) -> int:
    """``python -m bilevel compile CONFIG [--set key=value]… [--threads N]``: programs for ``run.oracle = "compiled"`` of the command."""
    import torch

    from bilevel import Error, _engine

    parser = argparse.ArgumentParser(prog="bilevel compile", description="Compile the derivatives that a configuration asks for.")
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args(arguments)
    try:
        made = _engine.compile_config(given.config, [*given.set, f"run.threads={given.threads}"])
    except Error as error:
        print(error, file=sys.stderr)
        return 2
    print(f'{made} programs are in {_engine.compiled_cache()}; run.oracle = "compiled" uses them.')
    return 0


def main() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.exit(shared())
    if sys.argv[1:2] == ["compile"]:
        sys.exit(compile_config(sys.argv[2:]))
    command = Path(__file__).parent / "bin" / "bilevel"
    if not command.exists():
        sys.exit(f"bilevel: the command is missing at {command}; install the package again (pip install .).")
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("bilevel: torch is not installed in this environment.")
    # The command finds torch beside the package; where the two live apart, the loader is told.
    libraries = str(Path(spec.submodule_search_locations[0]) / "lib")
    known = os.environ.get("LD_LIBRARY_PATH")
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{libraries}:{known}" if known else libraries}
    os.execve(command, [str(command), *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
