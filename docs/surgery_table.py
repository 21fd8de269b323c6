"""Which networks each surgery takes: every family of torchvision, and some of timm's; writes methods/surgeries.md.

    python docs/surgery_table.py            # all families, about ten minutes
    python docs/surgery_table.py resnet18   # what comes of some, printed

Every network is changed, trained for a step in float32, saved and loaded, and exported.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import postgrad
from postgrad._compat import prepare_torchvision
from postgrad.data.preprocessing import Preprocessing
from postgrad.errors import UserError
from postgrad.methods.registry import METHODS
from postgrad.models.registry import create_model

CLASSES = 10
TORCHVISION = {
    "alexnet": 64, "vgg11": 64, "vgg11_bn": 64, "resnet18": 64, "resnet50": 64, "resnext50_32x4d": 64,
    "wide_resnet50_2": 64, "densenet121": 64, "googlenet": 64, "inception_v3": 96, "squeezenet1_1": 64,
    "mobilenet_v2": 64, "mobilenet_v3_small": 64, "shufflenet_v2_x0_5": 64, "mnasnet0_5": 64, "efficientnet_b0": 64,
    "efficientnet_v2_s": 64, "regnet_y_400mf": 64, "convnext_tiny": 64, "vit_b_16": 224, "swin_t": 64, "maxvit_t": 224,
}  # fmt: skip
"""One network of each family, and the side of the images that it is tried on."""

TIMM = {
    "resnet18": 64, "resnetv2_50": 64, "seresnet18": 64, "regnetx_002": 64, "mobilenetv3_small_050": 64,
    "efficientnet_lite0": 64, "ghostnet_050": 64, "repvgg_a0": 64, "dla34": 64, "vovnet39a": 64, "cspresnet50": 64,
    "convnext_atto": 64, "mixer_s32_224": 224, "deit_tiny_patch16_224": 224, "levit_128s": 224, "tinynet_e": 64,
    "tf_mobilenetv3_small_075": 64,
}  # fmt: skip

SURGERIES: dict[str, dict[str, str]] = {"fixed_classifier": {}, "frn": {}, "mimicnorm": {}, "norm": {"kind": "group"}}
NETWORKS = {**{f"torchvision:{n}": s for n, s in TORCHVISION.items()}, **{f"timm:{n}": s for n, s in TIMM.items()}}

HEAD = """# Which networks the surgeries take

One network of each of torchvision's families, and some of timm's, each changed, trained for a step, saved, loaded and
exported by `python docs/surgery_table.py`, which wrote this page. A number is how many layers were changed; — means
that there was nothing to change, which is a warning; (1), (2), … that the surgery refused, for the reason below, and
left the network as it was.
"""


def attempted(network: str, surgery: str) -> str:
    """The outcome; where something goes wrong that should not, the network and the surgery are named."""
    try:
        return outcome(network, surgery)
    except Exception as error:
        raise RuntimeError(f"{surgery} on {network}") from error


def outcome(network: str, surgery: str) -> str:
    """How many layers were changed, "—" for none, or why it was refused; anything else that goes wrong is raised."""
    model = fresh(network)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    apply: Callable[..., int] = METHODS[surgery].load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            changed = apply(model, optimizer=optimizer, **SURGERIES[surgery])
        except UserError as error:
            check_untouched(model, before)
            return str(error)
    if not changed:
        check_untouched(model, before)
        return "—"
    check(model, optimizer, NETWORKS[network])
    return str(changed)


def fresh(network: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(network, num_classes=CLASSES)


def check_untouched(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def check(model: nn.Module, optimizer: torch.optim.Optimizer, side: int) -> None:
    """A step of training, the way through a file, and an export, all with finite numbers."""
    x = torch.randn(2, 3, side, side)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    loss = nn.functional.cross_entropy(model.train()(x), torch.tensor([0, 1]))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    model.eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        logits = model(x)
        assert logits.shape == (2, CLASSES)
        assert logits.isfinite().all()
        names = [str(number) for number in range(CLASSES)]
        postgrad.save(model, folder, preprocess=Preprocessing(), class_names=names)
        assert torch.equal(postgrad.load(folder)(x), logits)
        exact, wide = model.double(), x.double()  # small maps of random weights make rounding large in float32
        program = torch.export.export(exact, (wide,), strict=False)
        torch.testing.assert_close(program.module()(wide), exact(wide), rtol=1e-6, atol=1e-6)


def page(outcomes: dict[str, dict[str, str]]) -> str:
    """The table, with what was refused explained below it."""
    reasons: dict[str, str] = {}
    lines = [f"| network | {' | '.join(SURGERIES)} |", f"|---|{'---:|' * len(SURGERIES)}"]
    for network, found in outcomes.items():
        cells = []
        for said in found.values():
            counted = said.isdigit() or said == "—"
            cells.append(said if counted else reasons.setdefault(said, f"({len(reasons) + 1})"))
        lines.append(f"| {network} | {' | '.join(cells)} |")
    below = [f"{mark.strip('()')}. {reason}" for reason, mark in reasons.items()]
    return "\n".join([HEAD, *lines, "", *below, ""])


def main() -> None:
    prepare_torchvision()
    chosen = sys.argv[1:]
    outcomes: dict[str, dict[str, str]] = {}
    for network in [n for n in NETWORKS if not chosen or n.partition(":")[2] in chosen]:
        outcomes[network] = {surgery: attempted(network, surgery) for surgery in SURGERIES}
        print(network, outcomes[network], file=sys.stderr, flush=True)
    if chosen:
        print(page(outcomes))
    else:
        (Path(__file__).parent / "methods" / "surgeries.md").write_text(page(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
