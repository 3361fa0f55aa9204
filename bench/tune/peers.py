"""What other libraries make of the data that bench/tune/run.py has written, one peer a call, in the peers' own environment.

Prints one JSON object: the loss of the same five folds, the test loss, and the processor seconds of the whole choice.
"""

import argparse
import json
import pathlib
import resource
import time
import warnings

import numpy as np
import optuna
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV, LogisticRegression, LogisticRegressionCV, Ridge, RidgeCV
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import PredefinedSplit, cross_val_score

parser = argparse.ArgumentParser()
parser.add_argument("peer", choices=["logistic", "optuna", "ridge", "lasso"])
parser.add_argument("data", type=pathlib.Path, help="a folder with x, y, folds, test_x, test_y as .npy")
parser.add_argument("--limit", type=int, default=1200, help="processor seconds after which the peer is ended")
parser.add_argument("--max-iter", type=int, default=100, help="of scikit-learn's lbfgs; 100 is its default")
parser.add_argument("--trials", type=int, default=15, help="of optuna")
arguments = parser.parse_args()
resource.setrlimit(resource.RLIMIT_CPU, (arguments.limit, arguments.limit + 5))


def load(name: str) -> np.ndarray:
    return np.load(arguments.data / f"{name}.npy")


X, y, test_X, test_y, folds = (load(name) for name in ["x", "y", "test_x", "test_y", "folds"])
cv = PredefinedSplit(folds)
began, began_cpu = time.perf_counter(), time.process_time()
result: dict[str, object] = {"peer": arguments.peer, "scikit-learn": sklearn.__version__}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", ConvergenceWarning)
    if arguments.peer == "logistic":
        model = LogisticRegressionCV(
            Cs=10, cv=cv, scoring="neg_log_loss", max_iter=arguments.max_iter, l1_ratios=(0,), use_legacy_attributes=False
        )
        model.fit(X, y)
        result["cv_loss"] = -float(np.max(np.mean(model.scores_, axis=0)))
        result["strength"] = 1 / (float(model.C_) * len(y))
        result["evaluations"] = 10
    elif arguments.peer == "optuna":
        optuna.logging.set_verbosity(optuna.logging.ERROR)

        def loss(trial: optuna.Trial) -> float:
            C = trial.suggest_float("C", 1e-4, 1e4, log=True)
            return -float(np.mean(cross_val_score(LogisticRegression(C=C, max_iter=arguments.max_iter), X, y, cv=cv, scoring="neg_log_loss")))

        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
        study.optimize(loss, n_trials=arguments.trials)
        model = LogisticRegression(C=study.best_params["C"], max_iter=arguments.max_iter).fit(X, y)
        result["cv_loss"] = study.best_value
        result["strength"] = 1 / (study.best_params["C"] * len(y))
        result["evaluations"] = arguments.trials
        result["optuna"] = optuna.__version__
    elif arguments.peer == "ridge":
        # alpha = λ n: scikit-learn sums up squared errors, without the half on either side.
        alphas = np.logspace(-3, 5, 10)
        model = RidgeCV(alphas=alphas, cv=cv, scoring="neg_mean_squared_error").fit(X, y)
        result["strength"] = float(model.alpha_) / len(y)
        result["evaluations"] = len(alphas)
    else:
        model = LassoCV(cv=cv, alphas=10).fit(X, y)
        result["strength"] = float(model.alpha_)
        result["evaluations"] = 10
    result["cpu_seconds"] = time.process_time() - began_cpu
    result["seconds"] = time.perf_counter() - began
    result["warnings"] = sum(issubclass(w.category, ConvergenceWarning) for w in caught)
if arguments.peer in ("logistic", "optuna"):
    result["test_loss"] = float(log_loss(test_y, model.predict_proba(test_X)))
    result["test_accuracy"] = float(np.mean(model.predict(test_X) == test_y))
else:
    estimator = Ridge(alpha=model.alpha_) if arguments.peer == "ridge" else None
    if estimator is not None:
        result["cv_mse"] = -float(np.mean(cross_val_score(estimator, X, y, cv=cv, scoring="neg_mean_squared_error")))
    else:
        result["cv_mse"] = float(np.min(np.mean(model.mse_path_, axis=1)))
    result["test_mse"] = float(mean_squared_error(test_y, model.predict(test_X)))
print(json.dumps(result))
