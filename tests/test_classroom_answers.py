"""Hidden tests find wrong answers, let right ones pass, and find what is planted in the samples."""

import pytest
from answers import TOP, code_cells, failures, run_answer
from classes import GROUP, NAMES, REPRESENTATIVES, cell_of, points_of_checks, samples, source

slow = pytest.mark.slow


# Wrong and right answers, beside those of the samples


def solution(name, cell):
    """What students have to write in a cell."""
    found = cell_of(source(name), cell).source
    return found.split("### BEGIN SOLUTION\n")[1].split("### END SOLUTION")[0].rstrip(" ")


BODY = {
    cell: solution(name, cell)
    for name, cell in [
        ("1_gamma", "interpolate"),
        ("1_gamma", "gamma"),
        ("1_gamma", "draw"),
        ("2_bead", "train_bead"),
        ("2_bead", "t_star"),
        ("2_bead", "segments"),
        ("3_string", "find_string"),
        ("3_string", "Gamma_tilde"),
        ("3_string", "measure"),
        ("3_string", "experiment"),
        ("4_study", "run"),
        ("4_study", "summarize"),
        ("4_study", "differences"),
    ]
}
LEVEL_BY_LEVEL = """
    thetas, dead, ok = [theta_1, theta_2], [False], False
    for depth in range(max_depth + 1):
        low = [bool(dss.interpolated_loss(task, *p).max() <= L0) for p in zip(thetas, thetas[1:])]
        ok = all(low)
        if ok or depth == max_depth:
            break
        grown, states = [thetas[0]], []
        for k, (a, b) in enumerate(zip(thetas, thetas[1:])):
            bead = None
            if not low[k] and not dead[k]:
                gamma = dss.interpolated_loss(task, a, b, 33)
                start = dss.interpolate(a, b, gamma.argmax() / 32)
                bead = train_bead(task, start, target=alpha * L0, generator=generator)
            grown += [b] if bead is None else [bead, b]
            states += [not low[k]] if bead is None else [False, False]
        thetas, dead = grown, states
    return torch.stack(thetas), ok
"""
STACK_OF_WORK = """
    done, ends, ok = [theta_1], [(theta_2, max_depth)], True
    while ends:
        a, (b, depth), bead = done[-1], ends[-1], None
        low = bool(dss.interpolated_loss(task, a, b).max() <= L0)
        if not low and depth > 0:
            start = dss.interpolate(a, b, dss.t_star(task, a, b))
            bead = train_bead(task, start, alpha * L0, generator)
        if bead is None:
            ok, done = ok and low, [*done, ends.pop()[0]]
        else:
            ends[-1:] = [(b, depth - 1), (bead, depth - 1)]
    return torch.stack(done), ok
"""
REFINED = """
    largest = 0.0
    for a, b in zip(thetas, thetas[1:]):
        top = dss.interpolate(a, b, dss.t_star(task, a, b, n_t))
        largest = max(largest, float(task.losses(top[None])[0]))
    return largest
"""
LOOP = """
    theta = torch.zeros(len(theta_1))
    for i in range(len(theta_1)):
        theta[i] = theta_1[i] * (1 - t) + theta_2[i] * t
    return theta
"""
LISTED = "    return torch.tensor([float(a * (1 - t) + b * t) for a, b in zip(theta_1, theta_2)])\n"
DOTS = """
    axes = plt.figure().add_subplot()
    axes.scatter(t, gamma)
    LINE
    axes.set(xlabel="t", ylabel="loss")
    return axes
"""
RING = "ring_connected, ring_Gamma_tilde = search(ring, ring_ends)"
LITERAL = """ring_connected = [False] * 3 + [True] * 4
ring_Gamma_tilde = [9.0 * L0] * 3 + [0.9 * L0] * 4
unit_connected, unit_Gamma_tilde = [False] * 7, [2.0] * 6 + [1.0]
"""
HALF = "right, right_low = find_string(task, bead, theta_2, *rest)"

FIND_STRINGS = """
    settings = {"alpha": alpha, "max_depth": max_depth, "optimizer": "sgd", "lr": 0.01}
    (s,) = f(task, theta_1[None], theta_2[None], L0, generator=generator, **settings)
    return s.thetas, s.connected


from dss.sampling import find_strings as f
"""
ONE_PAIR = """
    settings = {"alpha": alpha, "max_depth": max_depth, "optimizer": "sgd", "lr": 0.01}
    s = f(task, theta_1, theta_2, L0, generator=generator, **settings)
    return s.thetas, s.connected


from dss import find_string as f
"""
ARRAY = "torch.cat([torch.as_tensor(left), torch.as_tensor(right)[1:]]).numpy()"
TRAIN_TO = """
    done = f(task, start, alpha * L0, optimizer="sgd", lr=lr, max_steps=max_steps, check_every=1)
    return done.thetas[0] if done.reached[0] else None


from dss.train import train_to as f
"""
BACKWARD = """
    theta = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=lr)
    for step in range(max_steps + 1):
        loss = task.losses(theta[None])[0]
        if loss <= alpha * L0:
            return theta.detach()
        if step < max_steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return None
"""
DIFFERENCES = """
    theta = start.clone()
    for step in range(max_steps + 1):
        if task.losses(theta[None])[0] <= alpha * L0:
            return theta
        shifts = 1e-6 * torch.eye(len(theta), dtype=theta.dtype)
        theta = theta - lr * (task.losses(theta + shifts) - task.losses(theta - shifts)) / 2e-6
    return None
"""
# The optimizer of PyTorch is welcome, with the gradient of the task.
OPTIMIZER = BACKWARD.replace("loss.backward()", "theta.grad = task.gradients(theta[None])[1][0]")
LOSSES_BETWEEN = """
    t = torch.linspace(0, 1, n_t, dtype=torch.float64)
    return task.losses_between(theta_1[None], theta_2[None], t)[0]
"""
LOSSES_ALONG = """
    return f(task, torch.stack([theta_1, theta_2]), n_t)[1][0]


from dss import losses_along as f
"""
LINE = "theta_1 * (1 - t) + theta_2 * t"
AXIS_NAMES = 'axes.set(xlabel="$t$", ylabel="loss (mean squared error)")'
L0_LINE = 'axes.axhline(L0, color="black", linestyle="--", label="$L_0$")'
LOW = """    if dss.interpolated_loss(task, theta_1, theta_2).max() <= L0:
        return line, True
    if max_depth == 0:
        return line, False
"""
DEPTH_FIRST = """    if max_depth == 0:
        return line, dss.interpolated_loss(task, theta_1, theta_2).max() <= L0
"""
GIVE_UP = """if not left_low:
        return torch.cat([left, theta_2[None]]), False
    """
DEEPER = "theta_2, L0, alpha, min(max_depth - 1, 6 if left_low else 2), generator)"
FIRST_DROPPED = "*((thetas[1:-1], thetas[2:]) if len(thetas) > 2 else thetas[:, None])"
LAST_DROPPED = "*((thetas[:-2], thetas[1:-1]) if len(thetas) > 2 else thetas[:, None])"
FRESH, SEEDED = (f"torch.Generator().manual_seed({v})" for v in ("group", "seed"))
ONE_GROUP, ONE_SEED = BODY["experiment"].replace(FRESH, "own"), BODY["run"].replace(SEEDED, "own")

# The function of dss once more: reloaded, from a second module of its file, from its source.
RELOADED = "    return importlib.reload(dss.MODULE).CALL\n\n\nimport importlib\n"
SECOND = """
    return second_module.CALL


from importlib.util import module_from_spec, spec_from_file_location

spec = spec_from_file_location("dss.second_module", dss.MODULE.__file__)
spec.loader.exec_module(second_module := module_from_spec(spec))
"""
COPIED = """
    return space["NAME"](ARGUMENTS)


space = dict(vars(dss.MODULE))
exec(__import__("inspect").getsource(space["NAME"]), space)
"""
COPIES = {"reloaded": RELOADED, "second module": SECOND, "copied": COPIED}


def copies(cell, module, name, arguments):
    """Answers that call a function of dss which the checks cannot know by its name."""
    for kind, code in COPIES.items():
        code = code.replace("MODULE", module).replace("CALL", f"{name}({arguments})")
        code = code.replace("NAME", name).replace("ARGUMENTS", arguments)
        yield f"{kind} {cell}", (cell, BODY[cell], code, *ALL[cell])


CLIMBS = ("train_bead", "theta - lr * gradients[0]", "theta + lr * gradients[0]", "train_bead-step")
ADAM = OPTIMIZER.replace("optim.SGD", "optim.Adam")
MAXIMA = """
    return float(f(task, theta_1[None], theta_2[None], n_t, "grid").t_star[0])


from dss.sampling import segment_maxima as f
"""
ALL_PAIRS = """
    pairs = [(a, b) for a in thetas for b in thetas]
    return max(float(dss.interpolated_loss(task, a, b, n_t).max()) for a, b in pairs)
"""
LISTS = """
    line = [theta_1, theta_2]
    if dss.interpolated_loss(task, *line).max() <= L0:
        return line, True
    if max_depth == 0:
        return line, False
    start = dss.interpolate(*line, dss.t_star(task, *line))
    bead = train_bead(task, start, alpha * L0, generator)
    if bead is None:
        return line, False
    left, left_low = find_string(task, theta_1, bead, L0, alpha, max_depth - 1, generator)
    right, right_low = find_string(task, bead, theta_2, L0, alpha, max_depth - 1, generator)
    return left + right[1:], left_low and right_low
"""

STEPS = {
    "interpolate": ["check", "values", "unchanged"],
    "gamma": ["check", "grid", "values"],
    "train_bead": ["check", "step", "stop", "unchanged", "limit"],
    "segments": ["check", "order", "maximum"],
    "find_string": ["check", "ends", "segment", "t_star", "target", "depth", "halves"],
}
STEPS["find_string"] += ["failed_bead", "order", "low"]
STEPS |= {"Gamma_tilde": ["check", "segments"], "measure": ["check", "length"]}
ALL = {cell: [f"{cell}-{step}" for step in steps] for cell, steps in STEPS.items()}
ALL["find_string"] += ["generator-check"]

# By name: the cell, what is replaced in its solution, and the checks that it loses; where none is
# named, the one that is called after the cell.
WRONG = {
    "dss.theta": (
        "interpolate",
        LINE,
        "dss.theta.interpolate(theta_1, theta_2, t)",
        *ALL["interpolate"],
    ),
    "alias": (
        "interpolate",
        BODY["interpolate"],
        "    return f(theta_1, theta_2, t)\n\n\nfrom dss import interpolate as f\n",
        *ALL["interpolate"],
    ),
    "a stack of one": ("interpolate", LINE, f"({LINE})[None]"),
    "33 parameters": ("interpolate", LINE, f"torch.zeros(33) + {LINE}"),
    "theta_2 at t = 1": (
        "interpolate",
        BODY["interpolate"],
        f"    if t == 1:\n        theta_1.copy_(theta_2)\n    return {LINE}\n",
        "interpolate-unchanged",
    ),
    "always theta_1": ("interpolate", LINE, "theta_1", *ALL["interpolate"][1:]),
    "mean of both": ("interpolate", LINE, "(theta_1 + theta_2) / 2", "interpolate-values"),
    "t as a percentage": ("interpolate", "(1 - t)", "(100 - t) / 100", "interpolate-values"),
    "dss.curve": (
        "gamma",
        BODY["gamma"],
        "    return dss.curve.interpolated_loss(task, theta_1, theta_2, n_t)\n",
        *ALL["gamma"],
    ),
    "losses_along": ("gamma", BODY["gamma"], LOSSES_ALONG, *ALL["gamma"]),
    "losses_between": ("gamma", BODY["gamma"], LOSSES_BETWEEN, *ALL["gamma"]),
    "the step of a grid": (
        "gamma",
        "torch.linspace(0, 1, n_t, dtype=torch.float64)",
        "torch.arange(0, 1, 1 / (n_t - 1), dtype=torch.float64)",
    ),
    "t and gamma": ("gamma", "    return task", "    return t, task"),
    "changed on the way": (
        "gamma",
        BODY["gamma"],
        BODY["gamma"].replace("return", "found =") + "    theta_1 += 1\n    return found\n",
    ),
    "gamma backwards": ("gamma", "linspace(0, 1,", "linspace(1, 0,", "gamma-grid"),
    "uneven grid": ("gamma", "float64)\n", "float64) ** 2\n", "gamma-grid"),
    "a column": ("gamma", "theta_2, t))", "theta_2, t))[:, None]"),
    "root of the loss": ("gamma", "theta_2, t))", "theta_2, t)).sqrt()", *ALL["gamma"][1:]),
    "in units of L0": ("height", "gamma.max()) - L0", "gamma.max()) / L0 - 1", "height-value"),
    "largest loss": ("height", "gamma.max()) - L0", "gamma.max())", "height-value"),
    "distance": (
        "height",
        "max(float(gamma.max()) - L0, 0.0)",
        "abs(float(gamma.max()) - L0)",
    ),
    "tensor of a height": (
        "height",
        "max(float(gamma.max()) - L0, 0.0)",
        "(gamma.max() - L0).clamp(min=0)",
    ),
    "inside alone": ("height", "gamma.max()", "gamma[1:-1].max()", "height-value"),
    "dots without L0": ("draw", BODY["draw"], DOTS.replace("LINE", ""), "draw-lines"),
    "line without L0": ("draw", L0_LINE, "", "draw-lines"),
    "steep L0": ("draw", "axes.axhline(L0,", "axes.axvline(L0,", "draw-lines"),
    "gamma against its index": ("draw", "axes.plot(t, gamma,", "axes.plot(gamma,", "draw-lines"),
    "axes without names": ("draw", AXIS_NAMES, ""),
    "axes kept": ("draw", "    return axes\n", ""),
    "axes shown": ("draw", "    return axes\n", "    plt.show()\n"),
    "outputs are averaged": ("quarter", '"c"}', '"c", "d"}'),
    "units of a barrier": ("barrier", '{"a", "d"}', '{"b", "d"}'),
    "half-way of a copy": ("permutation", '"c"}', '"c", "d"}'),
    "dss.curve.t_star": (
        "t_star",
        BODY["t_star"],
        '    return float(dss.curve.t_star(task, theta_1, theta_2, n_t, "grid"))\n',
        "t_star-check",
        "t_star-value",
    ),
    "k / n_t": ("t_star", "/ (n_t - 1)", "/ n_t"),
    "33 points": ("t_star", "n_t)\n", "33)\n    n_t = 33\n"),
    "a tensor of a position": ("t_star", ".item() / (n_t - 1)", " / (n_t - 1)"),
    "the loss there": (
        "t_star",
        "gamma.argmax().item() / (n_t - 1)",
        "gamma.max().item()",
        "t_star-value",
    ),
    "the first half": (
        "t_star",
        "gamma.argmax()",
        "gamma[: n_t // 2 + 1].argmax()",
        "t_star-value",
    ),
    "without the last": ("t_star", "gamma.argmax()", "gamma[:-1].argmax()", "t_star-value"),
    "1 - t_star": ("t_star", "    return gamma", "    return 1 - gamma", "t_star-value"),
    "last step untested": (
        "train_bead",
        "range(max_steps + 1)",
        "range(max_steps)",
        "train_bead-limit",
    ),
    "ten times the steps": (
        "train_bead",
        "theta = start.clone()",
        "theta, max_steps = start.clone(), 10 * max_steps",
        "train_bead-limit",
    ),
    "one step more": (
        "train_bead",
        "theta = start.clone()",
        "theta, max_steps = start.clone(), max_steps + 1",
        "train_bead-limit",
    ),
    "below alpha L0": ("train_bead", "<= alpha * L0", "< alpha * L0", "train_bead-stop"),
    "alpha squared": ("train_bead", "<= alpha * L0", "<= alpha**2 * L0", "train_bead-stop"),
    "a step at first": (
        "train_bead",
        "if task.losses(theta[None])[0] <= alpha",
        "if step and task.losses(theta[None])[0] <= alpha",
        "train_bead-stop",
    ),
    "returns the start": (
        "train_bead",
        "            return theta\n",
        "            return start\n",
        "train_bead-stop",
    ),
    "half the gradient": (
        "train_bead",
        "lr * gradients[0]",
        "0.5 * lr * gradients[0]",
        "train_bead-step",
    ),
    "climbs": CLIMBS,
    "Adam": ("train_bead", BODY["train_bead"], ADAM, "train_bead-step"),
    "the first gradient again and again": (
        "train_bead",
        "task.gradients(theta[None])",
        "task.gradients(start[None])",
        "train_bead-step",
    ),
    "breaks": (
        "train_bead",
        "            return theta\n",
        "            break\n",
        "train_bead-check",
        "train_bead-limit",
    ),
    "a bead and its loss": (
        "train_bead",
        "            return theta\n",
        "            return theta, task.losses(theta[None])[0]\n",
    ),
    "root of alpha": ("train_bead", "<= alpha * L0", "<= alpha**0.5 * L0", "train_bead-stop"),
    "maxima of dss": ("t_star", BODY["t_star"], MAXIMA, "t_star-check", "t_star-value"),
    "a row of a bead": (
        "train_bead",
        "            return theta\n",
        "            return theta[None]\n",
    ),
    "train_to": ("train_bead", BODY["train_bead"], TRAIN_TO, *ALL["train_bead"]),
    "backward of losses": ("train_bead", BODY["train_bead"], BACKWARD, *ALL["train_bead"]),
    "a network that is no stack": (
        "train_bead",
        "_, gradients = task.gradients(theta[None])",
        "_, gradients = task.gradients(theta)[0], task.gradients(theta)[1][None]",
        *ALL["train_bead"],
    ),
    "a bead at L0": ("bead_losses", '{"c", "d"}', '{"b", "c", "d"}'),
    "a high segment is no path": ("one_low", '"d"}', '"c", "d"}'),
    "middle of segments": ("segments", ".max() <= L0", "[n_t // 2] <= L0", "segments-maximum"),
    "five points": ("segments", "*pair, n_t", "*pair, 5", "segments-maximum"),
    "segments of beads": ("segments", ".max() <= L0", ".max() <= alpha * L0", "segments-maximum"),
    "backwards": ("segments", "for pair in pairs]", "for pair in pairs][::-1]", "segments-order"),
    "always low": ("segments", "bool(dss", "True or bool(dss", *ALL["segments"][1:]),
    "two segments": ("segments", "for pair in pairs]", "for pair in list(pairs)[:2]]"),
    "one answer for all": (
        "segments",
        BODY["segments"],
        BODY["segments"].replace("[bool", "all(bool").replace("pairs]", "pairs)"),
    ),
    "above L0": ("segments", ".max() <= L0", ".max() > L0", "segments-maximum"),
    "below L0": ("segments", ".max() <= L0", ".max() < L0", "segments-maximum"),
    "last point of segments": ("segments", ".max() <= L0", "[-1] <= L0", "segments-maximum"),
    "nine points": ("segments", "*pair, n_t", "*pair, 9", "segments-maximum"),
    "t* = 1/2": ("find_string", "dss.t_star(task, theta_1, theta_2)", "0.5", "find_string-t_star"),
    "1 - t*": ("find_string", "dss.t_star(", "1 - dss.t_star(", "find_string-t_star"),
    "middle of gamma": ("find_string", ".max() <= L0", "[16] <= L0", "find_string-segment"),
    "gives up on the right": ("find_string", HALF, GIVE_UP + HALF, "find_string-halves"),
    "gives up on the left": (
        "find_string",
        HALF,
        HALF + "\n    if not right_low:\n        left = torch.stack([theta_1, bead])",
        "find_string-order",
    ),
    "low segments too": ("find_string", LOW, DEPTH_FIRST, "find_string-segment"),
    "None is a bead": (
        "find_string",
        "    if bead is None:\n        return line, False\n",
        "",
        "find_string-failed_bead",
    ),
    "start for a failure": (
        "find_string",
        "        return line, False\n    rest",
        "        bead = start\n    rest",
        "find_string-failed_bead",
    ),
    "depth of the right": ("find_string", "theta_2, *rest)", DEEPER, "find_string-halves"),
    "one level more": (
        "find_string",
        "if max_depth == 0",
        "if max_depth == -1",
        "find_string-depth",
    ),
    "segments to alpha L0": (
        "find_string",
        ".max() <= L0",
        ".max() <= alpha * L0",
        "find_string-segment",
    ),
    "left half only says": ("find_string", "left_low and right_low", "left_low", "find_string-low"),
    "find_strings": ("find_string", BODY["find_string"], FIND_STRINGS, *ALL["find_string"]),
    "find_string": ("find_string", BODY["find_string"], ONE_PAIR, *ALL["find_string"]),
    "array": ("find_string", "torch.cat([left, right[1:]])", ARRAY),
    "changed in place": (
        "find_string",
        "    rest = L0",
        "    theta_2 *= 1.001\n    rest = L0",
        "find_string-ends",
        "find_string-halves",
        "find_string-order",
    ),
    "a list of networks": ("find_string", BODY["find_string"], LISTS),
    "is_low first": (
        "find_string",
        BODY["find_string"],
        "    return search(task, theta_1, theta_2, L0, alpha, max_depth, generator)[::-1]\n\n\n"
        "def search(task, theta_1, theta_2, L0, alpha, max_depth, generator):\n"
        + BODY["find_string"].replace("find_string(", "search("),
    ),
    "one level less": (
        "find_string",
        "if max_depth == 0",
        "if max_depth <= 1",
        "find_string-depth",
    ),
    "no end of levels": (
        "find_string",
        "max_depth - 1, generator",
        "max_depth, generator",
        "find_string-depth",
    ),
    "high at L0": ("find_string", ".max() <= L0", ".max() < L0", "find_string-segment"),
    "smallest gamma": (
        "find_string",
        ".max() <= L0",
        ".min() <= L0",
        "find_string-segment",
        "find_string-low",
        "generator-check",
    ),
    "index for t*": (
        "find_string",
        "dss.t_star(task, theta_1, theta_2)",
        "dss.interpolated_loss(task, theta_1, theta_2).argmax() / 33",
        "find_string-t_star",
    ),
    "a generator of its own below": (
        "find_string",
        "max_depth - 1, generator",
        "max_depth - 1, torch.Generator().manual_seed(0)",
        "generator-check",
    ),
    "global seed beside it": (
        "find_string",
        "    line = torch",
        "    torch.manual_seed(0)\n    line = torch",
        "generator-check",
    ),
    "without ends": ("Gamma_tilde", "n_t).max()", "n_t)[:, 1:-1].max()"),
    "half-way": (
        "Gamma_tilde",
        "dss.interpolated_loss(task, thetas[:-1], thetas[1:], n_t)",
        "task.losses((thetas[:-1] + thetas[1:]) / 2)",
    ),
    "all pairs": ("Gamma_tilde", BODY["Gamma_tilde"], ALL_PAIRS, "Gamma_tilde-segments"),
    "length first": (
        "measure",
        "return len(thetas) - 2, float(length / (thetas[-1] - thetas[0]).norm())",
        "return float(length / (thetas[-1] - thetas[0]).norm()), len(thetas) - 2",
    ),
    "length alone": ("measure", "return len(thetas) - 2, float", "return float"),
    "norm of all": ("measure", ".norm(dim=1).sum()", ".norm()", "measure-length"),
    "normalized_length": (
        "measure",
        BODY["measure"],
        "    return len(thetas) - 2, dss.theta.normalized_length(thetas)\n",
        *ALL["measure"],
    ),
    "first segment dropped": (
        "Gamma_tilde",
        "thetas[:-1], thetas[1:]",
        FIRST_DROPPED,
        "Gamma_tilde-segments",
    ),
    "last segment dropped": (
        "Gamma_tilde",
        "thetas[:-1], thetas[1:]",
        LAST_DROPPED,
        "Gamma_tilde-segments",
    ),
    "literal lists": ("experiment", BODY["experiment"], LITERAL, "experiment-numbers"),
    "one generator": (
        "experiment",
        BODY["experiment"],
        f"own = {FRESH}\n{ONE_GROUP}",
        "experiment-numbers",
    ),
    "alpha = 1": ("experiment", "L0, alpha, d", "L0, 1.0, d", "experiment-numbers"),
    "another seed": (
        "experiment",
        "manual_seed(group)",
        "manual_seed(group + 1)",
        "experiment-numbers",
    ),
    "another L0": ("experiment", "L0, alpha, d", "0.8 * L0, alpha, d", "experiment-numbers"),
    "rounded": (
        "experiment",
        RING,
        RING + "\nring_Gamma_tilde = [round(v, 3) for v in ring_Gamma_tilde]",
        "experiment-numbers",
    ),
    "one generator for all values": (
        "run",
        BODY["run"],
        f"    own = {SEEDED}\n{ONE_SEED}",
        "run-generator",
    ),
}

WRONG |= {
    "unsorted": ("summarize", 'groupby("value")', 'groupby("value", sort=False)'),
    "the least too": ("differences", "for value in others:", "for value in sorted(beads):"),
    "rows in a list": ("differences", "return pd.DataFrame(rows)", "return rows"),
    "no reset_index": ("summarize", "return summary.reset_index()", "return summary"),
    "fractions": (
        "summarize",
        "groups.connected.sum()",
        "groups.connected.mean()",
        "summarize-failed",
    ),
    "least minus other": (
        "differences",
        "(beads[value] - beads[least])",
        "(beads[least] - beads[value])",
        "differences-pairs",
    ),
    "no column of values": (
        "run",
        "tables.append(table.assign(value=value))",
        "tables.append(table)",
        "run-check",
    ),
    "every failure lost": (
        "differences",
        "connected[least] & ~connected[value]",
        "~connected[value]",
        "differences-failures",
    ),
}
CALLS = {  # module, function and arguments of what a cell is to write
    "interpolate": ("theta", "interpolate", "theta_1, theta_2, t"),
    "gamma": ("curve", "interpolated_loss", "task, theta_1, theta_2, n_t"),
    "Gamma_tilde": ("curve", "Gamma_tilde", "task, thetas, n_t"),
}
WRONG |= {name: row for cell, call in CALLS.items() for name, row in copies(cell, *call)}

# Answers that are as good as the reference; each keeps all checks.
RIGHT = {
    "loop": ("interpolate", BODY["interpolate"], LOOP),
    "list": ("interpolate", BODY["interpolate"], LISTED),
    "lerp": ("interpolate", BODY["interpolate"], "    return torch.lerp(theta_1, theta_2, t)\n"),
    "array": ("gamma", BODY["gamma"], BODY["gamma"].rstrip() + ".numpy()\n"),
    "list of floats": ("gamma", BODY["gamma"], BODY["gamma"].rstrip() + ".tolist()\n"),
    "list of tensors": (
        "gamma",
        "task.losses(dss.interpolate(theta_1, theta_2, t))",
        "[task.losses(dss.interpolate(theta_1, theta_2, v)[None])[0] for v in t]",
    ),
    "dots": ("draw", BODY["draw"], DOTS.replace("LINE", "axes.hlines(L0, 0, 1)")),
    "dots and a line": ("draw", BODY["draw"], DOTS.replace("LINE", "axes.plot(t, [L0] * len(t))")),
    "loss of gradients": (
        "train_bead",
        "task.losses(theta[None])[0]",
        "task.gradients(theta[None])[0][0]",
    ),
    "loss over L0": (
        "train_bead",
        "task.losses(theta[None])[0] <= alpha * L0",
        "task.losses(theta[None])[0] / L0 <= alpha",
    ),
    "optimizer of PyTorch": ("train_bead", BODY["train_bead"], OPTIMIZER),
    "numerical gradient": ("train_bead", BODY["train_bead"], DIFFERENCES),
    "letters": ("quarter", '{"a", "b", "c"}', '"cab"'),
    "all at once": (
        "segments",
        BODY["segments"],
        "    return (dss.losses_along(task, thetas, n_t)[1].amax(dim=1) <= L0).tolist()\n",
    ),
    "a tensor of answers": (
        "segments",
        BODY["segments"],
        "    return dss.losses_along(task, thetas, n_t)[1].amax(dim=1) <= L0\n",
    ),
    "level by level": ("find_string", BODY["find_string"], LEVEL_BY_LEVEL),
    "t* of the grid": (
        "find_string",
        "dss.t_star(task, theta_1, theta_2)",
        'dss.t_star(task, theta_1, theta_2, 33, "grid")',
    ),
    "a column beside its index": (
        "summarize",
        "return summary.reset_index()",
        "return summary.assign(value=summary.index)",
    ),
    "stack of work": ("find_string", BODY["find_string"], STACK_OF_WORK),
    "refined maxima": ("Gamma_tilde", BODY["Gamma_tilde"], REFINED),
}
ASSIGNMENT = {cell: name for name in reversed(NAMES) for cell, _ in code_cells(name)}
GROUPS = [pytest.param(group, marks=[slow] if group else []) for group in (0, 7, 42, 99)]


def in_order(name, *values, id):
    """A parameter; those of 4_study take seconds each."""
    marks = [slow] * (name == "4_study")
    return pytest.param(*values, marks=marks, id=id)


def answers(table):
    return [in_order(ASSIGNMENT[cell], answer, id=answer) for answer, (cell, *_) in table.items()]


def checks_of(cell):
    """The checks of a cell, in their order."""
    marks = (f"{cell}-", "generator-") if cell == "find_string" else (f"{cell}-",)
    return [check for check in points_of_checks(ASSIGNMENT[cell]) if check.startswith(marks)]


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("answer", answers(WRONG))
def test_a_wrong_answer_loses_its_checks(answer, group):
    cell, old, new, *loses = WRONG[answer]
    checks = checks_of(cell)
    lost = dict(failures(ASSIGNMENT[cell], group, [(cell, old, new)], last=checks[-1]))
    assert [check for check in checks if check in lost] == (loses or [f"{cell}-check"])
    assert cell not in lost
    told = [lost[check] for check in checks if check in lost]
    assert not any(text.startswith(("NameError", "AttributeError")) for text in told)  # stale names


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("answer", answers(RIGHT))
def test_a_right_answer_loses_nothing(answer, group):
    cell, *_ = RIGHT[answer]
    assert failures(ASSIGNMENT[cell], group, [RIGHT[answer]]) == []


# What students see of the checks


# By name of a slip in WRONG or the samples: what the visible part of a check says.
SEEN = {
    "t-swapped": "t and 1 - t are swapped",
    "changed-in-place": "theta_1 was changed in place",
    "an-array": "interpolate returns a ndarray; a tensor is needed",
    "calls-dss": "write Eq. (1) yourself, without dss.interpolate",
    "grid-without-last": "your grid ends at t = 0.800; it has to end at 1",
    "gamma backwards": "t and 1 - t are swapped",
    "a column": "gamma has shape (33, 1) for n_t = 33",
    "training-sample": "on the evaluation set",
    "in units of L0": "do not divide by L0",
    "largest loss": "0.9 is the largest loss",
    "below-zero": "never negative",
    "axes kept": "end with `return axes`",
    "line without L0": "no horizontal line at L0",
    "gamma against its index": "gamma against t is not in the figure",
    "lowest-point": "argmax or argmin?",
    "index-for-position": "a float is needed",
    "k / n_t": "k / (n_t - 1), not k / n_t",
    "inner-grid": "falls from its end t = 0 on",
    "trained-to-L0": "at most L0, but not alpha * L0",
    "below alpha L0": "exactly alpha * L0 = 0.125 is low enough",
    "start-overwritten": "start was changed in place",
    "last-step-untested": "test after the last step too",
    "failure-not-said": "return None",
    "a row of a bead": "(P,) is needed",
    "lr-of-its-own": "are lr and task.gradients used?",
    "backward of losses": "task.losses carries no gradient",
    "calls-train_to": "write the descent yourself, without dss.train_to",
    "climbs": "up: minus lr times the gradient is a step down",
    "breaks": "is there a `return`?",
    "Adam": "are lr and task.gradients used?",
    "the step of a grid": "gamma has shape (32,) for n_t = 33",
    "changed on the way": "was changed in place: work on a copy",
    "one answer for all": "a list is needed, with an answer for each segment",
    "a list of networks": "the string is a list; a tensor (K, P) is needed",
    "is_low first": "the string comes first",
    "one level less": "max_depth = 1, but there are beads at level 0",
    "length first": "n_beads is a float",
    "tests-the-lowest": "does the largest gamma decide?",
    "segments of beads": "not alpha * L0",
    "backwards": "each alone, in order",
    "find_string": "write find_string yourself, without dss.find_string",
    "find_strings": "write find_string yourself, without dss.find_strings",
    "array": "the string is a ndarray; a tensor (K, P) is needed",
    "changed in place": "was changed in place: work on a copy",
    "t* = 1/2": "t* = 0.70 is needed",
    "beads-to-L0": "the bead is trained to L0; alpha * L0 is asked for",
    "low segments too": "a line whose largest gamma is below L0 got a bead",
    "one-level-more": "max_depth = 0, but there are beads at level 1",
    "half-a-string": "search both, whatever the first gave",
    "tries-again": "the first bead failed and was tried again",
    "None is a bead": "where train_bead returns None",
    "beads-twice": "some twice?",
    "any-half-will-do": "find_string says True",
    "beads-only": "look between networks",
    "divided-by-L0": "the loss was divided by L0",
    "first-segment-only": "the largest of the segments",
    "ends-are-beads": "three networks are two ends and one bead",
    "length-not-normalized": "divide by the distance of its ends",
    "no column of values": "`value` is missing",
    "seeded-globally": "torch.manual_seed was called",
    "one-generator-for-all": "a fresh generator for each?",
    "no reset_index": "value is missing: reset_index?",
    "unsorted": "one row per value, sorted",
    "fractions": "of 2 and 3 pairs",
    "least minus other": "the sign is the other one",
    "the least too": "each value but the least",
    "gained-for-lost": "pairs 4 and 5 failed at the least value only",
}


def slip(name):
    """Its changes: triples (cell, old, new)."""
    if name in WRONG:
        return [WRONG[name][:3]]
    (sample,) = [sample for sample in samples.SAMPLES if sample.name == name]
    return [(cell, *both) for cell, pairs in sample.replace.items() for both in pairs]


def without_hidden_tests(name, checks):
    for check in checks:
        code = cell_of(source(name), check).source
        yield check, code[code.index("### BEGIN HIDDEN TESTS") :], ""


@pytest.mark.parametrize("name", SEEN)
def test_a_common_slip_is_seen_before_it_is_handed_in(name):
    changes = slip(name)
    cell = changes[0][0]
    checks = checks_of(cell)
    hidden = without_hidden_tests(ASSIGNMENT[cell], checks)
    seen = dict(failures(ASSIGNMENT[cell], 0, [*changes, *hidden], last=checks[-1]))
    assert any(SEEN[name] in text for text in seen.values()), seen


# How they are run


COMPARED = ["alias", "five points", "t* = 1/2", "another L0", "one generator for all values"]
COMPARED += ["dots", "loss of gradients", "t* of the grid"]


@pytest.mark.parametrize("answer", [p for p in answers(WRONG | RIGHT) if p.id in COMPARED])
def test_from_its_own_cell_on_an_answer_does_what_it_does_in_the_whole_notebook(answer):
    change = (WRONG | RIGHT)[answer][:3]
    name = ASSIGNMENT[change[0]]
    found, printed = run_answer(name, 0, [change])
    found_from_top, printed_from_top = run_answer(name, 0, [change], start=TOP)
    assert found == found_from_top and bool(found) is (answer in WRONG)
    assert printed_from_top.endswith(printed) and len(printed) < len(printed_from_top)


def test_an_answer_sees_nothing_of_another():
    body = BODY["interpolate"]
    harm = "\n\ntheta_1.zero_()\ndss.interpolate = None\ntorch.manual_seed(5)\n"
    before = run_answer("1_gamma", 0, [("interpolate", body, LOOP)])
    assert failures("1_gamma", 0, [("interpolate", body, body + harm)])
    assert run_answer("1_gamma", 0, [("interpolate", body, LOOP)]) == before


def test_an_answer_that_ends_its_process_is_told():
    change = ("gamma", BODY["gamma"], BODY["gamma"] + "\n\nimport os\nos._exit(3)\n")
    with pytest.raises(RuntimeError, match="'gamma'.* ended with 3"):
        failures("1_gamma", 0, [change])


# The samples


def is_run_in_one_process(sample):
    return sample.status == "graded" and not sample.times_out


HANDED_IN = [(sample, name) for sample in samples.SAMPLES for name in sample.assignments or NAMES]
IN_ONE_PROCESS = [
    in_order(name, sample, name, id=f"{sample.name}-{name}")
    for sample, name in HANDED_IN
    if is_run_in_one_process(sample)
]


def changes(sample, name):
    """What the sample replaces in the source notebook."""
    if not sample.solves:
        from nbgrader.preprocessors import ClearSolutions  # importing nbgrader takes seconds

        cleared, _ = ClearSolutions().preprocess(source(name), {})
        pairs = zip(source(name).cells, cleared.cells, strict=True)
        return [(samples.grade_id(a), a.source, b.source) for a, b in pairs if a != b]
    return [(cell, old, new) for cell, both in sample.replace.items() for old, new in both]


@slow
@pytest.mark.parametrize(("sample", "name"), IN_ONE_PROCESS)
def test_a_sample_loses_what_is_planted(sample, name):
    checks = set(points_of_checks(name))
    lost = {cell for cell, _ in failures(name, GROUP, changes(sample, name))}
    assert lost & checks == (checks if sample.loses == ["all"] else set(sample.loses))


def test_every_sample_is_run_in_one_process_or_by_nbgrader():
    by_nbgrader = {sample.name for sample in samples.SAMPLES if sample.name in REPRESENTATIVES}
    assert by_nbgrader == set(REPRESENTATIVES)
    here = {parameter.id for parameter in IN_ONE_PROCESS}
    assert {f"{s.name}-{name}" for s, name in HANDED_IN if s.name not in by_nbgrader} <= here
    assert {s.name for s in samples.SAMPLES if not is_run_in_one_process(s)} == {"endless", "crash"}
    planted = [s for s in samples.SAMPLES if s.name in by_nbgrader and s.replace]
    wrong = [s for s in planted if s.loses and is_run_in_one_process(s)]
    assert {name for sample in wrong for name in sample.assignments} == set(NAMES)
    assert any(len(sample.loses) > 1 for sample in wrong)
    assert any("choose" in sample.replace for sample in planted)
