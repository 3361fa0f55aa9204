"""Writes the samples of bench/tune/run.py as .npy: x, y, folds of the training set, test_x, test_y."""

import gzip
import pathlib
import sys

import numpy as np

FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist


def idx(name: str) -> np.ndarray:
    raw = gzip.decompress((FASHION / name).read_bytes())
    dimensions = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dimensions)).reshape(dimensions)


def fashion(samples: int, folder: pathlib.Path, folds: int = 5) -> None:
    """`samples` random images of the training set, and the whole test set, pixels in 0…1."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(0).permutation(60000)[:samples]
    x, y = idx("train-images-idx3-ubyte.gz")[rows], idx("train-labels-idx1-ubyte.gz")[rows]
    test_x, test_y = idx("t10k-images-idx3-ubyte.gz"), idx("t10k-labels-idx1-ubyte.gz")
    np.save(folder / "x.npy", x.reshape(samples, -1).astype(np.float32) / 255)
    np.save(folder / "y.npy", y.astype(np.int64))
    np.save(folder / "folds.npy", np.arange(samples, dtype=np.int64) % folds)
    np.save(folder / "test_x.npy", test_x.reshape(len(test_x), -1).astype(np.float32) / 255)
    np.save(folder / "test_y.npy", test_y.astype(np.int64))


if __name__ == "__main__":
    fashion(int(sys.argv[1]), pathlib.Path(sys.argv[2]))
