"""``python -m bilevel`` and the ``bilevel`` command: the compiled one that is installed with the package.

Under ``torchrun`` with several processes the module itself runs the command, with torch.distributed's process group.
"""

from __future__ import annotations

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


def main() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.exit(shared())
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
