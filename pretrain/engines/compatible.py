"""Which optimisers an engine can run.

ZeRO hands the optimiser flat slices of many parameters in a row, so from stage 1 on it suits only optimisers that take each element for
itself; FSDP2 hands it the rows of each parameter as one distributed tensor, of which norms come out right, and more than norms does not.
"""

ELEMENTWISE = frozenset(
    (
        *(
            "sgd",
            "momentum",
            "nesterov",
            "sgdw",
            "nesterovw",
            "sgdc",
            "adam",
            "adamw",
            "adamc",
            "adamwlegacy",
            "adamax",
            "adagrad",
            "adadelta",
        ),
        *("nadam", "nadamw", "nadamc", "nadamlegacy", "radam", "radamw", "radamlegacy", "adabelief", "radabelief", "adan", "adanw"),
        *("adopt", "adoptw", "adoptc", "laprop", "lapropc", "lion", "lionc", "madgrad", "madgradw", "rmsprop", "rmsproptf", "rmsproptfw"),
        "rmsproptfc",
    )
)
"""timm's names of those that take each element for itself."""

COUNTING_BY_GROUP = frozenset(("adan", "adanw"))
"""Those that count a group's steps: stage 3 steps a group once for each of all groups' slices."""

BY_ROWS = frozenset(("lamb", "lambw", "lars"))
"""Those that give the same under FSDP2 although they look at whole parameters: their norms are taken over all ranks' rows."""


def optimizer_problem(name: str, kind: str, zero_stage: int) -> list[str]:
    """Returns what is wrong with an optimiser under an engine, or nothing. `name` is timm's; case and dashes do not matter."""
    spelled = name.lower().replace("_", "")
    if kind == "plain" or (kind == "deepspeed" and zero_stage == 0):
        return []
    if kind == "fsdp":
        if spelled in ELEMENTWISE | BY_ROWS:
            return []
        return [
            _refusal(name, "engine.kind=fsdp", "not known to give the same on rows of a parameter as on the whole", ELEMENTWISE | BY_ROWS)
        ]
    if spelled not in ELEMENTWISE:
        what = "looks at whole parameters, and ZeRO steps flat slices of them"
        return [_refusal(name, f"engine.zero_stage={zero_stage}", what, ELEMENTWISE)]
    if zero_stage == 3 and spelled in COUNTING_BY_GROUP:
        what = "counts steps by group, of which stage 3 makes several a step"
        return [_refusal(name, "engine.zero_stage=3", what, ELEMENTWISE - COUNTING_BY_GROUP)]
    return []


def _refusal(name: str, engine: str, what: str, allowed: frozenset[str]) -> str:
    return f"optimizer.name={name}: {what} ({engine}); use engine.kind=plain, or one of: {', '.join(sorted(allowed))}"
