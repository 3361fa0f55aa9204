"""Writes rules.json beside it: y after each of 20 steps of torch.optim, in double, for bilevel/inner/torch_optim_test.cpp.

    python tests/data/rules.py

Each case has the keys of an [inner] section and the same in PyTorch. The problem is ½ yᵀA y − bᵀy + 0.05 Σ y⁴ from y₀.
"""
import json
import pathlib

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR, StepLR

torch.set_default_dtype(torch.float64)
A = [[2, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 0.5]]
b = [1, -2, 0.5]
y0 = [0.3, -0.2, 0.9]

O = torch.optim
CASES = [
    # keys, optimiser, clip, schedule
    ('rule = "sgd"\nlr = 0.1\nmomentum = 0.8\ndampening = 0.4\nweight_decay = 0.2',
     lambda p: O.SGD(p, lr=0.1, momentum=0.8, dampening=0.4, weight_decay=0.2)),
    ('rule = "sgd"\nlr = 0.1\nmomentum = 0.9\nnesterov = true\nweight_decay = 0.05',
     lambda p: O.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05)),
    ('rule = "adam"\nlr = 0.1\nbetas = [0.7, 0.9]\neps = 1e-3\nweight_decay = 0.3',
     lambda p: O.Adam(p, lr=0.1, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.3)),
    ('rule = "adam"\nlr = 0.3\nbetas = [0.5, 0.6]\namsgrad = true', lambda p: O.Adam(p, lr=0.3, betas=(0.5, 0.6), amsgrad=True)),
    ('rule = "adamw"\nlr = 0.1', lambda p: O.AdamW(p, lr=0.1)),
    ('rule = "adamw"\nlr = 0.3\nbetas = [0.5, 0.6]\nweight_decay = 0.3\namsgrad = true',
     lambda p: O.AdamW(p, lr=0.3, betas=(0.5, 0.6), weight_decay=0.3, amsgrad=True)),
    ('rule = "rmsprop"\nlr = 0.1', lambda p: O.RMSprop(p, lr=0.1)),
    ('rule = "rmsprop"\nlr = 0.05\nalpha = 0.8\neps = 1e-3\nweight_decay = 0.3\nmomentum = 0.7',
     lambda p: O.RMSprop(p, lr=0.05, alpha=0.8, eps=1e-3, weight_decay=0.3, momentum=0.7)),
    ('rule = "rmsprop"\nlr = 0.05\nalpha = 0.9\ncentered = true', lambda p: O.RMSprop(p, lr=0.05, alpha=0.9, centered=True)),
    ('rule = "rmsprop"\nlr = 0.02\nalpha = 0.7\ncentered = true\nmomentum = 0.5\nweight_decay = 0.1',
     lambda p: O.RMSprop(p, lr=0.02, alpha=0.7, centered=True, momentum=0.5, weight_decay=0.1)),
    ('rule = "adagrad"\nlr = 0.3', lambda p: O.Adagrad(p, lr=0.3)),
    ('rule = "adagrad"\nlr = 0.5\nlr_decay = 0.1\nweight_decay = 0.3\ninitial_accumulator_value = 0.4\neps = 1e-3',
     lambda p: O.Adagrad(p, lr=0.5, lr_decay=0.1, weight_decay=0.3, initial_accumulator_value=0.4, eps=1e-3)),
    ('rule = "adadelta"\nlr = 1.0', lambda p: O.Adadelta(p, lr=1.0)),
    ('rule = "adadelta"\nlr = 0.7\nrho = 0.6\neps = 1e-2\nweight_decay = 0.3',
     lambda p: O.Adadelta(p, lr=0.7, rho=0.6, eps=1e-2, weight_decay=0.3)),
    ('rule = "adamax"\nlr = 0.1', lambda p: O.Adamax(p, lr=0.1)),
    ('rule = "adamax"\nlr = 0.2\nbetas = [0.7, 0.8]\neps = 1e-2\nweight_decay = 0.3',
     lambda p: O.Adamax(p, lr=0.2, betas=(0.7, 0.8), eps=1e-2, weight_decay=0.3)),
    ('rule = "sgd"\nlr = 0.2\nmomentum = 0.5\nweight_decay = 0.1\nclip_norm = 0.6',
     lambda p: O.SGD(p, lr=0.2, momentum=0.5, weight_decay=0.1), 0.6),
    ('rule = "adam"\nlr = 0.1\nclip_norm = 0.5', lambda p: O.Adam(p, lr=0.1), 0.5),
    ('rule = "rmsprop"\nlr = 0.05\nclip_norm = 0.5', lambda p: O.RMSprop(p, lr=0.05), 0.5),
    ('rule = "sgd"\nlr = 0.3\nsteps = 20\nschedule = "cosine"\neta_min = 0.01', lambda p: O.SGD(p, lr=0.3), None,
     lambda o: CosineAnnealingLR(o, T_max=20, eta_min=0.01)),
    ('rule = "adam"\nlr = 0.2\nschedule = "cosine"\nT_max = 30', lambda p: O.Adam(p, lr=0.2), None,
     lambda o: CosineAnnealingLR(o, T_max=30)),
    ('rule = "sgd"\nlr = 0.3\nmomentum = 0.5\nschedule = "linear"\nstart_factor = 0.2\nend_factor = 0.9\ntotal_iters = 8',
     lambda p: O.SGD(p, lr=0.3, momentum=0.5), None, lambda o: LinearLR(o, start_factor=0.2, end_factor=0.9, total_iters=8)),
    ('rule = "rmsprop"\nlr = 0.1\nschedule = "step"\nstep_size = 6\ngamma = 0.5', lambda p: O.RMSprop(p, lr=0.1), None,
     lambda o: StepLR(o, step_size=6, gamma=0.5)),
    ('rule = "adamw"\nlr = 0.2\nsteps = 20\nschedule = "warmup-cosine"\nstart_factor = 0.1\ntotal_iters = 6\neta_min = 0.02',
     lambda p: O.AdamW(p, lr=0.2), None,
     lambda o: SequentialLR(o, [LinearLR(o, start_factor=0.1, total_iters=6), CosineAnnealingLR(o, T_max=14, eta_min=0.02)], [6])),
]


def trajectory(optimiser, clip=None, schedule=None):
    y = torch.tensor(y0, requires_grad=True)
    o = optimiser([y])
    s = schedule(o) if schedule else None
    H, c, points = torch.tensor(A), torch.tensor(b, dtype=torch.float64), []
    for _ in range(20):
        o.zero_grad()
        (0.5 * y @ H @ y - c @ y + 0.05 * (y**4).sum()).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_([y], clip)
        o.step()
        if s:
            s.step()
        points.append(y.tolist())
    return points


if __name__ == "__main__":
    cases = [{"keys": keys, "y": trajectory(*rest)} for keys, *rest in CASES]
    out = {"torch": torch.__version__.split("+")[0], "A": A, "b": b, "y0": y0, "cases": cases}
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(out, indent=1) + "\n")
