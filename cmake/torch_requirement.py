"""What the wheel requires: the release of torch that it is built against, since C++ of one release does not load with another.

Asked by scikit-build-core. With build isolation that torch is the newest tested one, and pip brings it into the environment; without,
it is the torch of the environment.
"""

from importlib.metadata import PackageNotFoundError, version


def dynamic_metadata(field, settings=None, project=None):
    try:
        major, minor = version("torch").split(".")[:2]
    except PackageNotFoundError:  # a source distribution is made without
        return ["torch>=2.11,<2.14", "numpy"]
    return [f"torch=={major}.{minor}.*", "numpy"]
