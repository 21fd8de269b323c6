"""Accuracy under attack: AutoAttack for networks, Square and HopSkipJump for any classifier, by way of ART."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from postgrad._compat import prepare_torchvision
from postgrad.data.containers import Images
from postgrad.data.pixels import to_unit
from postgrad.data.preprocessing import Preprocessing
from postgrad.data.splits import limited
from postgrad.errors import UserError, unknown_name
from postgrad.evaluation.resampling import Array
from postgrad.evaluation.scorecard import with_intervals
from postgrad.models.network import NetworkClassifier, evaluating
from postgrad.progress import progress

Pixels = NDArray[np.float32]
"""Images (n, C, H, W) in [0, 1]."""

ATTACKED_IMAGES = 100
_WEAK = ("fgsm", "pgd", "bim", "deepfool")
_BATCH = 100
_GRADIENT_STEPS = 100
_RESTARTS = 5
_SQUARE_STEPS = 5000
_SQUARE_STEPS_ALONE = 1000
_HOP_STEPS = 20
_HOP_QUERIES = 1000


def measure_attack(
    classifier: Any,
    images: Tensor,
    labels: Any,
    *,
    attack: str,
    epsilon: float,
    n: int = ATTACKED_IMAGES,
    seed: int = 0,
    source: Any = None,
) -> dict[str, Any]:
    """Accuracy before and after an attack on n of the images, as an `attacks` entry of results.json.

    >>> measure_attack(classifier, images, labels, attack="autoattack", epsilon=8 / 255)["metrics"]["robust_accuracy"]
    {'mean': 0.02, …}

    Args:
        images, labels: uint8 (N, C, H, W) and (N,); of them n are attacked, each class in proportion, the first ones.
        attack: "autoattack" needs gradients; "square" and "hopskipjump" only `predict_proba`.
        epsilon: the largest change of any pixel (ℓ∞), pixels from 0 to 1.
        source: another classifier that the attack is made against, to see whether it transfers; None attacks this one.

    Attacked pixels stay within epsilon of the image and within [0, 1], before the classifier's own preprocessing. The
    robust accuracy is the share of images that are right before and after; of images wrong before nothing is asked.
    Raises `UserError` for an unknown or too weak attack, an epsilon outside (0, 1], or a missing `postgrad[attack]`.
    """
    check_attack(attack, epsilon)
    chosen = limited(Images(images, torch.as_tensor(labels, dtype=torch.int64)), n)
    pixels, truth = to_unit(chosen.images).numpy(), chosen.labels.numpy()
    right = _predicted(classifier, pixels) == truth
    attacked = pixels.copy()
    if right.any():
        with _seeded(seed):
            attacked[right] = ATTACKS[attack](source or classifier, pixels[right], truth[right], epsilon)
    robust = right & (_predicted(classifier, attacked) == truth)
    columns = np.column_stack([right, robust]).astype(np.float64)

    def statistic(counts: Array) -> dict[str, Array]:
        return dict(zip(("accuracy", "robust_accuracy"), (counts @ columns).T / counts.sum(axis=1), strict=True))

    values = {"accuracy": float(right.mean()), "robust_accuracy": float(robust.mean())}
    metrics = with_intervals(values, statistic, len(truth))
    return {"attack": attack, "norm": "linf", "epsilon": epsilon, "n": len(truth), "metrics": metrics}


def check_attack(attack: str, epsilon: float) -> None:
    """Refuse an attack or an epsilon that cannot be used, before anything is computed."""
    if attack.lower() in _WEAK:
        raise UserError(
            f"{attack} alone overstates robustness, since classifiers can hide their gradients from it; use "
            "autoattack, or square or hopskipjump for a classifier without gradients"
        )
    if attack not in ATTACKS:
        raise unknown_name("attack", attack, ATTACKS)
    if not 0 < epsilon <= 1:
        raise UserError(f"epsilon: expected a number above 0 and at most 1 (pixels are 0 to 1), got {epsilon:g}")
    prepare_torchvision()
    try:
        import art  # noqa: F401, only whether it is there
    except ImportError:
        raise UserError(
            "attacks need adversarial-robustness-toolbox; install it with: pip install 'postgrad[attack]'"
        ) from None


def _autoattack(classifier: Any, x: Pixels, y: NDArray[np.int64], epsilon: float) -> Pixels:
    """APGD on the cross-entropy, APGD on the difference of logits ratio, DeepFool, Square: each on what is left."""
    from art.attacks.evasion import AutoProjectedGradientDescent, DeepFool

    estimator = _white_box(classifier, x.shape[1:])
    steps: dict[str, Any] = {"norm": np.inf, "eps": epsilon, "eps_step": 2 * epsilon, "max_iter": _GRADIENT_STEPS}
    steps |= {"nb_random_init": _RESTARTS, "batch_size": _BATCH, "verbose": False}
    losses = ["cross_entropy", "difference_logits_ratio"] if estimator.nb_classes > 2 else ["cross_entropy"]
    attacks: list[Any] = [AutoProjectedGradientDescent(estimator, loss_type=loss, **steps) for loss in losses]
    classes = min(10, estimator.nb_classes)
    attacks.append(DeepFool(estimator, max_iter=_GRADIENT_STEPS, nb_grads=classes, batch_size=_BATCH, verbose=False))
    attacks.append(_square_attack(estimator, epsilon, _SQUARE_STEPS))
    return _one_after_the_other(attacks, estimator, x, y, epsilon)


def _square(classifier: Any, x: Pixels, y: NDArray[np.int64], epsilon: float) -> Pixels:
    estimator = _black_box(classifier, x.shape[1:])
    return _one_after_the_other([_square_attack(estimator, epsilon, _SQUARE_STEPS_ALONE)], estimator, x, y, epsilon)


def _hopskipjump(classifier: Any, x: Pixels, y: NDArray[np.int64], epsilon: float) -> Pixels:
    """Begins at another of the images that the classifier calls something else, so that the outcome can be repeated."""
    from art.attacks.evasion import HopSkipJump

    estimator = _black_box(classifier, x.shape[1:])
    others = [np.flatnonzero(y != label) for label in y]
    starts = [x[np.random.choice(each)] for each in others if len(each)]
    settings: dict[str, Any] = {"norm": np.inf, "max_iter": _HOP_STEPS, "max_eval": _HOP_QUERIES, "verbose": False}
    attack = HopSkipJump(estimator, batch_size=_BATCH, **settings)
    given = {"x_adv_init": np.stack(starts)} if len(starts) == len(x) else {}
    return _within(attack.generate(x, y=_one_hot(y, estimator.nb_classes), **given), x, epsilon)


ATTACKS: dict[str, Callable[[Any, Pixels, NDArray[np.int64], float], Pixels]] = {
    "autoattack": _autoattack,
    "square": _square,
    "hopskipjump": _hopskipjump,
}
"""Name -> from a classifier, images that it gets right, their labels and epsilon to attacked images."""


def _one_after_the_other(attacks: list[Any], estimator: Any, x: Pixels, y: NDArray[np.int64], epsilon: float) -> Pixels:
    """What each attack changes for the worse among the images that those before it have left right."""
    attacked, left = x.copy(), np.arange(len(x))
    with progress("attacking", len(attacks), unit="attacks") as advance:
        for attack in attacks:
            advance(0, note=f"{type(attack).__name__} on {len(left)} images")
            if len(left):
                found = attack.generate(x[left].copy(), y=_one_hot(y[left], estimator.nb_classes))
                found = _within(found, x[left], epsilon)
                fooled = estimator.predict(found).argmax(axis=1) != y[left]
                attacked[left[fooled]] = found[fooled]
                left = left[~fooled]
            advance(1, note=f"{len(left)} of {len(x)} images are still right")
    return attacked


def _within(attacked: Pixels, x: Pixels, epsilon: float) -> Pixels:
    """The nearest pixels that lie within epsilon of the image and within [0, 1]."""
    return np.clip(np.clip(attacked, x - np.float32(epsilon), x + np.float32(epsilon)), 0, 1)


def _square_attack(estimator: Any, epsilon: float, steps: int) -> Any:
    from art.attacks.evasion import SquareAttack

    _, height, width = estimator.input_shape
    if min(height, width) < 2:
        raise UserError(f"square: images of {height}×{width} pixels are too small for squares")
    # ART draws where a square goes from what is left beside it, so it must be smaller than the image.
    largest = (min(height, width) - 1) ** 2 / (height * width)
    return SquareAttack(
        estimator, norm=np.inf, eps=epsilon, max_iter=steps, p_init=min(0.8, largest), nb_restarts=1, verbose=False
    )


class _OnPixels(nn.Module):
    """A network with its preprocessing before it, so that attacks change pixels in [0, 1]."""

    def __init__(self, network: nn.Module, preprocess: Preprocessing) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.preprocess = preprocess

    def forward(self, pixels: Tensor) -> Tensor:
        dtype = next((p.dtype for p in self.network.parameters()), torch.float32)
        return self.network(self.preprocess(pixels).to(dtype)).float()


def _white_box(classifier: Any, shape: tuple[int, ...]) -> Any:
    """The network in ART's terms, a copy, so that nothing of the user's is touched."""
    from art.estimators.classification import PyTorchClassifier

    if not isinstance(classifier, NetworkClassifier):
        raise UserError("autoattack needs the gradients of a network, which this classifier has not; use square")
    on_gpu = classifier.device.type == "cuda"
    if not _has_gradient(classifier, shape):
        raise UserError("autoattack needs gradients, and torch has none through this file; use square")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own, where it copies a program that it loaded
        network = deepcopy(classifier.model)
    model = _OnPixels(network.to(classifier.device if on_gpu else "cpu").eval(), classifier.preprocess)
    return PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=len(classifier.class_names),
        clip_values=(0.0, 1.0),
        device_type="gpu" if on_gpu else "cpu",
    )


def _has_gradient(classifier: NetworkClassifier, shape: tuple[int, ...]) -> bool:
    with evaluating(classifier.model), torch.enable_grad():
        x = classifier.inputs(torch.zeros(2, *shape)).requires_grad_()
        return bool(classifier.model(x).requires_grad)


def _black_box(classifier: Any, shape: tuple[int, ...]) -> Any:
    from art.estimators.classification.blackbox import BlackBoxClassifierNeuralNetwork

    def predict(pixels: Pixels) -> Pixels:
        return np.asarray(classifier.predict_proba(torch.from_numpy(pixels.astype(np.float32))), np.float32)

    classes = len(classifier.classes_)
    return BlackBoxClassifierNeuralNetwork(predict, shape, classes, channels_first=True, clip_values=(0.0, 1.0))


def _predicted(classifier: Any, pixels: Pixels) -> NDArray[np.intp]:
    return np.asarray(classifier.predict_proba(torch.from_numpy(pixels))).argmax(axis=1)


def _one_hot(y: NDArray[np.int64], classes: int) -> Pixels:
    return np.eye(classes, dtype=np.float32)[y]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """ART draws from NumPy's and torch's global generators: seed them inside the block, and put them back after it."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        np.random.set_state(state)
