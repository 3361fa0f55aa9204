"""The package as built, with torch on one thread and in double."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _numbers():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield


def close(found, expected, tolerance=1e-8):
    """Relative to the norm of what is expected."""
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.shape == expected.shape
    error = (found - expected).norm() / expected.norm()
    assert error <= tolerance, f"relative error {error:.2e}"


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits as the engine embeds them: X/16 and labels."""
    import csv
    import gzip
    import os

    import numpy as np

    path = os.path.join(os.path.dirname(__file__), "..", "..", "bilevel", "problem", "data", "digits.csv.gz")
    with gzip.open(path, "rt") as file:
        rows = np.array([[float(v) for v in row] for row in csv.reader(file)])
    return rows[:, :64] / 16, torch.from_numpy(rows[:, 64].astype("int64"))
