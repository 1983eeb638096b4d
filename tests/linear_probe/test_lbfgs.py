"""The parts of a descent: its direction against the textbook's loops, the derivatives along a line against autograd, the step's slope."""

import torch

from bamboo.linear_probe.solver.gram import Gram, Preconditioner
from bamboo.linear_probe.solver.lbfgs import History
from bamboo.linear_probe.solver.line_search import Penalty, search
from bamboo.linear_probe.solver.objective import Objective

PROBLEMS, CLASSES, FEATURES, ROWS = 2, 3, 4, 40
RIDGES = torch.tensor([0.5, 0.01], dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def two_loops(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], gradient_KE: torch.Tensor, precondition: Preconditioner, member: int
) -> torch.Tensor:
    """Algorithm 7.4 of Nocedal and Wright, word by word, for one problem; pairs oldest first."""
    alone = precondition.take(torch.tensor([member]))
    work, shares = gradient_KE.clone(), []
    for step, change in reversed(pairs):
        shares.append((step * work).sum() / (step * change).sum())
        work = work - shares[-1] * change
    work = alone(work[None])[0]
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        work = work + step * (share - (change * work).sum() / (step * change).sum())
    return -work


def test_the_direction_is_the_two_loop_recursions() -> None:
    """Memory of four after none to seven pairs, one without curvature in one problem, and after a change of μ, against algorithm 7.4."""
    vectors = torch.linalg.qr(drawn(FEATURES, FEATURES)).Q
    gram = Gram(torch.arange(1.0, FEATURES + 1, dtype=torch.float64), vectors, 2.5)
    curvature = drawn(PROBLEMS, CLASSES, seed=1).abs() + 0.1
    history, gradient = History(4), drawn(PROBLEMS, CLASSES, FEATURES + 1, seed=2)
    history.at(RIDGES)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []  # steps, and changes of the loss gradient
    for number in range(8):
        for ridges in (RIDGES, 0.3 * RIDGES):
            history.at(ridges)
            precondition = Preconditioner(gram, curvature, ridges)
            found = history.direction(gradient, precondition)
            for member in range(PROBLEMS):
                pairs = []
                for step, change in kept[-4:]:
                    total = change[member].clone()
                    total[:, :-1] += ridges[member] * step[member, :, :-1]
                    pairs += [(step[member], total)] if (step[member] * total).sum() > 0 else []
                torch.testing.assert_close(found[member], two_loops(pairs, gradient[member], precondition, member), rtol=1e-9, atol=1e-9)
        step = drawn(PROBLEMS, CLASSES, FEATURES + 1, seed=10 + number)
        change = step * (drawn(PROBLEMS, CLASSES, FEATURES + 1, seed=30 + number).abs() + 0.1)
        change[1] *= -1.0 if number == 3 else 1.0
        total = change.clone()
        total[..., :-1] += 0.3 * RIDGES[:, None, None] * step[..., :-1]
        history.push(step, total)
        kept.append((step, change))


def line_problem() -> tuple[Objective, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns a weighted objective of two problems in float64, parameters, a descent direction and labels."""
    features, labels = drawn(ROWS, FEATURES, seed=3).float(), torch.arange(ROWS) % CLASSES
    weights = torch.rand(PROBLEMS, ROWS, generator=torch.Generator().manual_seed(4))
    weights[0, ::5] = 0.0
    objective = Objective(features, labels, CLASSES, torch.float64, weights)
    parameters = drawn(PROBLEMS, CLASSES, FEATURES + 1, seed=5)
    return objective, parameters, -objective.points(parameters).gradient(RIDGES), labels


def test_derivatives_along_a_line_are_autograds() -> None:
    """φ, φ' and φ'' of two weighted problems, the residual and the gradient it makes, against autograd on torch's cross_entropy."""
    objective, parameters, direction, labels = line_problem()
    logits, along = objective.forward(parameters), objective.forward(direction)
    length, residual = torch.tensor([0.3, 1.7], dtype=torch.float64), torch.empty_like(logits)
    found = objective.line(logits, along, length, residual)
    assert objective.weights_MN is not None
    for member, weights in enumerate(objective.weights_MN.double()):

        def phi(t: torch.Tensor, member: int = member, weights: torch.Tensor = weights) -> torch.Tensor:
            at = (logits[member] + t * along[member]).T
            return (weights * torch.nn.functional.cross_entropy(at, labels, reduction="none")).sum() / weights.sum()

        t = length[member].clone().requires_grad_()
        value = phi(t)
        (slope,) = torch.autograd.grad(value, t, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, t)
        torch.testing.assert_close(found.loss_M[member], value.detach())
        torch.testing.assert_close(found.slope_M[member], slope.detach())
        torch.testing.assert_close(found.curvature_M[member], curvature)
    following = objective.points(parameters + length[:, None, None] * direction)
    torch.testing.assert_close(objective.backward(residual), following.loss_gradient_MKE)


def test_a_step_ends_where_the_slope_is_small() -> None:
    """|φ'| at the step against 3 % of |φ'(0)|, both from full gradients, for steep and flat directions; uphill does not descend."""
    objective, parameters, direction, _ = line_problem()
    start = objective.points(parameters)
    for scale in (1e-3, 1.0, 1e3):
        downhill = scale * direction
        initial = (start.gradient(RIDGES) * downhill).sum((1, 2))
        along = objective.forward(downhill)
        penalty = Penalty.of(RIDGES, parameters, downhill)
        steps = search(objective, penalty, initial, start.logits_MKN, along, torch.empty_like(along))
        assert bool(steps.descended_M.all())
        end = objective.points(parameters + steps.length_M[:, None, None] * downhill)
        slope = (end.gradient(RIDGES) * downhill).sum((1, 2))
        assert bool((slope.abs() <= 0.0301 * initial.abs()).all())
        assert bool((end.value(RIDGES) < start.value(RIDGES)).all())
        uphill = search(objective, Penalty.of(RIDGES, parameters, -downhill), -initial, start.logits_MKN, -along, torch.empty_like(along))
        assert not bool(uphill.descended_M.any())
