"""The protocols by name: procedures are classes, what they are called with is data."""

from ...cli.config import nearest
from ...cli.errors import UserError
from .bamboo_2022 import Bamboo2022
from .convex import Clip, Standard
from .neighbours import Knn
from .outcome import Protocol
from .sgd_heads import DinoLinear

STANDARD = Standard(
    name="standard",
    grid=tuple(10.0 ** (2.0 - step / 4.0) for step in range(45)),  # 10² … 10⁻⁹, four a decade
    val_fraction=0.2,
    sweep_tolerance=1e-4,
    floor_share=0.01,
    patience=6,
    final_tolerance=1e-7,
    final_gap=1e-6,
)

CLIP = Clip(
    name="clip",
    revision=2,
    weakest=1e-6,
    strongest=1e6,
    num_steps=96,
    coarse_steps=16,
    val_fraction=0.2,
    sweep_tolerance=3e-6,
    final_tolerance=1e-7,
    final_gap=1e-6,
)

BAMBOO_2022 = Bamboo2022(
    name="bamboo-2022",
    penalties=(1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
    num_segments=10,
    num_steps=1000,
    scored_every=100,
)

KNN = Knn(name="knn", neighbours=(10, 20, 100, 200), temperature=0.07, val_fraction=0.2)

DINO_LINEAR = DinoLinear(
    name="dino-linear",
    learning_rates=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1),
    num_steps=12_500,
    batch_size=1024,
    lr_batch=256,
    momentum=0.9,
    init_std=0.01,
    val_fraction=0.2,
)

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (STANDARD, CLIP, BAMBOO_2022, KNN, DINO_LINEAR)}


def describe_protocol(name: str) -> Protocol:
    """Returns the protocol of that name; an unknown one is a UserError that names the nearest."""
    if name not in PROTOCOLS:
        raise UserError(f"protocol={name}: no such protocol{nearest(name, list(PROTOCOLS))}")
    return PROTOCOLS[name]
