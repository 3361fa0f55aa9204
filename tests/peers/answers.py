"""What one peer answers on the problems: `answers.py PEER OUT.npz`, run in the environment of the peers."""

import sys

import numpy as np
import torch

import problems
from problems import STEPS, TERMS, Ridge, Weights, train

torch.set_default_dtype(torch.double)
ANSWERS = {}


def answers(peer, kind, name):
    def register(function):
        ANSWERS.setdefault(peer, []).append((kind, name, function))
        return function

    return register


class Parameter(torch.nn.Module):
    """A module that holds one vector and returns it."""

    def __init__(self, value):
        super().__init__()
        self.value = torch.nn.Parameter(value.clone())

    def forward(self):
        return self.value


# ---------------------------------------------------------------- higher
def _higher(problem, optimizer, steps=STEPS):
    import higher

    net, x = Parameter(problem.y0), problem.x0.clone().requires_grad_()
    with higher.innerloop_ctx(net, optimizer(net.parameters())) as (fnet, rule):
        for _ in range(steps):
            rule.step(problem.inner(x, fnet()))
        return torch.autograd.grad(problem.outer(x, fnet()), x)[0]


@answers("higher", Weights, "unrolled sgd")
def _(p):
    return _higher(p, lambda w: torch.optim.SGD(w, lr=p.lr))


@answers("higher", Weights, "unrolled sgd momentum")
def _(p):
    return _higher(p, lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9))


@answers("higher", Weights, "unrolled adam")
def _(p):
    return _higher(p, lambda w: torch.optim.Adam(w, lr=0.05, eps=1e-15))


@answers("higher", Weights, "WRONG adam whose eps counts")
def _(p):
    return _higher(p, lambda w: torch.optim.Adam(w, lr=0.05, eps=1e-3))


# ---------------------------------------------------------------- TorchOpt
def _torchopt_unroll(problem, rule):
    net, x = Parameter(problem.y0), problem.x0.clone().requires_grad_()
    optimizer = rule(net)
    for _ in range(STEPS):
        optimizer.step(problem.inner(x, net()))
    return torch.autograd.grad(problem.outer(x, net()), x)[0]


@answers("torchopt", Weights, "unrolled sgd")
def _(p):
    import torchopt

    return _torchopt_unroll(p, lambda net: torchopt.MetaSGD(net, lr=p.lr))


@answers("torchopt", Weights, "unrolled sgd momentum")
def _(p):
    import torchopt

    return _torchopt_unroll(p, lambda net: torchopt.MetaSGD(net, lr=0.1, momentum=0.9))


@answers("torchopt", Weights, "unrolled adam")
def _(p):
    import torchopt

    return _torchopt_unroll(p, lambda net: torchopt.MetaAdam(net, lr=0.05, eps=1e-15))


def _torchopt_root(problem, solve, solution):
    import torchopt

    @torchopt.diff.implicit.custom_root(lambda y, x: torch.func.grad(problem.inner, argnums=1)(x, y), argnums=1, solve=solve)
    def solver(y, x):
        del y
        return solution(x.detach()).clone()

    x = problem.x0.clone().requires_grad_()
    return torch.autograd.grad(problem.outer(x, solver(problem.y0.clone(), x)), x)[0]


@answers("torchopt", Ridge, "implicit")
def _(p):
    import torchopt

    return _torchopt_root(p, torchopt.linear_solve.solve_cg(maxiter=100, rtol=1e-14, atol=1e-14), p.solution)


@answers("torchopt", Weights, "neumann at y_T")
def _(p):
    import torchopt

    series = torchopt.linear_solve.solve_inv(ns=True, maxiter=TERMS, alpha=p.lr)
    return _torchopt_root(p, series, lambda x: train(p, x))


# ---------------------------------------------------------------- hypertorch
def _hypertorch(problem, method, *args, y=None, **options):
    import hypergrad

    x = problem.x0.clone().requires_grad_()
    y = problem.solution(x.detach()) if y is None else y
    step = hypergrad.GradientDescent(lambda p, h: problem.inner(h[0], p[0]), problem.lr)
    outer = lambda p, h: problem.outer(h[0], p[0])  # noqa: E731
    return getattr(hypergrad, method)([y.clone().requires_grad_()], [x], *args, step, outer, set_grad=False, **options)[0]


@answers("hypertorch", Ridge, "implicit")
def _(p):
    return _hypertorch(p, "fixed_point", 5000, tol=1e-14)


@answers("hypertorch", Weights, "neumann at y_T")
def _(p):
    return _hypertorch(p, "neumann", TERMS, y=train(p, p.x0), tol=0.0)


@answers("hypertorch", Weights, "unrolled sgd")
def _(p):
    import hypergrad

    x = p.x0.clone().requires_grad_()
    step = hypergrad.GradientDescent(lambda y, h: p.inner(h[0], y[0]), p.lr)
    y = [p.y0.clone().requires_grad_()]
    for _ in range(STEPS):
        y = step(y, [x])
    return hypergrad.reverse_unroll(y, [x], lambda y, h: p.outer(h[0], y[0]), set_grad=False)[0]


class OneStep:
    """½‖y − x‖², where CG is done after one iteration."""

    lr = 0.5

    def __init__(self, seed):
        rs = np.random.RandomState(seed)
        self.x0, self.c = torch.tensor(rs.normal(size=4)), torch.tensor(rs.normal(size=4))

    def inner(self, x, y):
        return 0.5 * (y - x).square().sum()

    def outer(self, x, y):
        return 0.5 * (y - self.c).square().sum()

    def solution(self, x):
        return x.detach().clone()


@answers("hypertorch", OneStep, "WRONG cg that is done after one iteration")
def _(p):
    return _hypertorch(p, "CG", 10, tol=1e-10)


# ---------------------------------------------------------------- Betty
def _betty(problem, steps, y0=None, **config):
    """One outer SGD step of size 1 after `steps` inner ones, so that x moves by minus the hypergradient."""
    import logging

    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    logging.disable(logging.CRITICAL)
    x, net = Parameter(problem.x0), Parameter(problem.y0)
    if y0 is not None:
        net.value.data.copy_(y0)

    class Outer(ImplicitProblem):
        def training_step(self, batch):
            return problem.outer(self.module(), self.inner())

    class Inner(ImplicitProblem):
        def training_step(self, batch):
            return problem.inner(self.outer(), self.module())

    nothing = [(torch.zeros(1), torch.zeros(1))]
    outer = Outer(
        name="outer",
        module=x,
        optimizer=torch.optim.SGD(x.parameters(), lr=1.0),
        train_data_loader=nothing,
        config=Config(retain_graph=True),
    )
    inner = Inner(
        name="inner",
        module=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.0 if y0 is not None else problem.lr),
        train_data_loader=nothing,
        config=Config(unroll_steps=steps, **config),
    )
    Engine(
        config=EngineConfig(train_iters=steps, valid_step=10**9, strategy="cpu"),
        problems=[outer, inner],
        dependencies={"u2l": {outer: [inner]}, "l2u": {inner: [outer]}},
    ).run()
    return problem.x0 - x().detach()


@answers("betty", Weights, "neumann at y_T")
def _(p):
    return _betty(p, STEPS, type="neumann", neumann_iterations=TERMS, neumann_alpha=p.lr)


@answers("betty", Ridge, "darts over the step size")
def _(p):
    return _betty(p, 1, p.solution(p.x0), type="darts")


@answers("betty", Ridge, "WRONG cg")
def _(p):
    return _betty(p, 1, p.solution(p.x0), type="cg", cg_iterations=8, cg_alpha=1.0)


# ---------------------------------------------------------------- JAXopt
def _jax_ridge(problem):
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    data = [jnp.asarray(a.numpy()) for a in (problem.X, problem.t, problem.V, problem.s)]

    def inner(y, x, X, t):
        return 0.5 * jnp.mean((X @ y - t) ** 2) + 0.5 * jnp.sum(jnp.exp(x) * y**2)

    def outer(y, V, s):
        return 0.5 * jnp.mean((V @ y - s) ** 2)

    return jax, data, inner, outer, jnp.asarray(problem.x0.numpy())


def _jaxopt_root(problem, jit):
    from jaxopt import implicit_diff, linear_solve

    jax, data, inner, outer, x = _jax_ridge(problem)
    cg = lambda A, b: linear_solve.solve_cg(A, b, maxiter=100, tol=1e-14)  # noqa: E731

    @implicit_diff.custom_root(jax.grad(inner), solve=cg)
    def solver(y, x, X, t):
        del y
        H = X.T @ X / len(t) + jax.numpy.diag(jax.numpy.exp(x))
        return jax.numpy.linalg.solve(H, X.T @ t / len(t))

    h = jax.grad(lambda x, d: outer(solver(None, x, d[0], d[1]), d[2], d[3]))
    return np.asarray((jax.jit(h) if jit else h)(x, data))


@answers("jaxopt", Ridge, "implicit")
def _(p):
    return _jaxopt_root(p, jit=False)


@answers("jaxopt", Ridge, "implicit, jit")
def _(p):
    return _jaxopt_root(p, jit=True)


@answers("jaxopt", Ridge, "unrolled sgd")
def _(p):
    import jaxopt

    jax, data, inner, outer, x = _jax_ridge(p)
    solver = jaxopt.GradientDescent(inner, stepsize=p.lr, acceleration=False, maxiter=STEPS, tol=0.0, implicit_diff=False, unroll=True)
    y0 = jax.numpy.asarray(p.y0.numpy())
    return np.asarray(jax.grad(lambda x: outer(solver.run(y0, x, data[0], data[1]).params, data[2], data[3]))(x))


# ---------------------------------------------------------------- Optimistix
@answers("optimistix", Ridge, "implicit")
def _(p):
    import lineax
    import optimistix

    jax, data, inner, outer, x = _jax_ridge(p)
    adjoint = optimistix.ImplicitAdjoint(lineax.CG(rtol=1e-14, atol=1e-14))
    y0 = jax.numpy.asarray(p.solution(p.x0).numpy())  # so that what is compared is the adjoint

    def total(x):
        y = optimistix.minimise(
            lambda y, a: inner(y, a, data[0], data[1]),
            optimistix.BFGS(rtol=1e-13, atol=1e-13),
            y0,
            x,
            adjoint=adjoint,
            tags=frozenset({lineax.positive_semidefinite_tag}),
            max_steps=5000,
        ).value
        return outer(y, data[2], data[3])

    return np.asarray(jax.grad(total)(x))


def main(peer, out):
    found = {}
    for kind, name, function in ANSWERS[peer]:
        for seed in problems.SEEDS:
            value = function(kind(seed))
            found[f"{kind.__name__}/{name}/{seed}"] = value.detach().numpy() if isinstance(value, torch.Tensor) else value
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
